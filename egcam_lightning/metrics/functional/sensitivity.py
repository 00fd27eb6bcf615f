"""Maximum sensitivity: how far does the map move when the image hardly does?"""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.metrics.functional._maps import check_images, where_finite
from egcam_lightning.metrics.functional._protocol import ExplainFunction, over_points


def max_sensitivity(
    explain_fn: ExplainFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    *,
    radius: float = 0.02,
    num_samples: int = 10,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Tensor:
    """Largest relative change of the map among images drawn from a small ball around the image; lower is better.

    The ball is that of the largest absolute difference of a pixel, drawn from uniformly. The change is the Frobenius
    norm of the difference over that of the map (over 1 where the map is all zero), as in captum's
    ``sensitivity_max``; other than there, every image gets the same noise, so that the value does not depend on how
    images are batched.

    Range: [0, inf). Cost: ``num_samples`` explanations an image. Paper: Yeh et al., *On the (In)fidelity and
    Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        explain_fn: ``(images (N, C, H, W), target (N,)) -> (N, h, w)``; called with gradients enabled. It should use
            the same draws at every call, or their noise is taken for sensitivity.
        images: ``(B, C, H, W)``.
        attribution: ``(B, h, w)``, what ``explain_fn`` gives for the images.
        target: ``(B,)`` int64.
        radius: of the ball, in units of the model's input.
        num_samples: how many images are drawn from it.
        seed: of the noise.
        chunk_size: how many images go through ``explain_fn`` at once; ``None`` for B.

    Returns:
        ``(B,)`` float32; NaN where a map is not finite.

    Raises:
        TypeError: where images, maps or targets are not of the right kind.
        ValueError: where their shapes do not fit, the radius is negative, or ``explain_fn`` gives other shapes.

    Example:
        >>> import torch
        >>> grey = lambda images, target: images.mean(1)
        >>> images = torch.ones(2, 3, 4, 4)
        >>> bool((max_sensitivity(grey, images, grey(images, None), torch.tensor([0, 1])) <= 0.02).all())
        True

    """
    attribution, target = check_images(images, attribution, target)
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}.")
    generator = torch.Generator().manual_seed(seed)
    shape = (max(num_samples, 0), *images.shape[1:])
    noise = torch.empty(shape).uniform_(-radius, radius, generator=generator).to(images.device)
    norm = torch.linalg.vector_norm(attribution.flatten(1), dim=1)
    norm = torch.where(norm == 0, 1.0, norm)

    def evaluate(point: Tensor, image: Tensor) -> Tensor:
        with torch.enable_grad():
            maps = explain_fn((images[image].float() + noise[point]).to(images.dtype), target[image])
        if maps.shape != attribution[image].shape:
            raise ValueError(
                f"the explain function must give maps of the shape of attribution, {tuple(attribution[image].shape)}, "
                f"got {tuple(maps.shape)}."
            )
        change = maps.detach().to(attribution.dtype) - attribution[image]
        relative: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1) / norm[image]
        return relative

    with torch.no_grad():
        return where_finite(over_points(evaluate, num_samples, target, chunk_size, len(images)).amax(1), attribution)
