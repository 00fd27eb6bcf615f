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

    The ball is that of the largest absolute difference of a pixel, drawn from uniformly. Images of whole numbers stay
    whole and within their own range, and are moved by at least a level: less would be rounded away. The change is the
    Frobenius norm of the difference over that of the map (over 1 where the map is all zero), as in captum's
    ``sensitivity_max``; other than there, every image gets the same noise, so that the value does not depend on how
    images are batched.

    Range: [0, inf). Cost: ``num_samples`` explanations per image. Paper: Yeh et al., *On the (In)fidelity and
    Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        explain_fn: ``(images (N, C, H, W), target (N,)) -> (N, h, w)``; called with gradients enabled. It should use
            the same draws at every call, or their noise is taken for sensitivity.
        images: ``(B, C, H, W)``, of the type that ``explain_fn`` takes, of whole numbers too.
        attribution: ``(B, h, w)``, what ``explain_fn`` gives for the images.
        target: ``(B,)`` int64.
        radius: of the ball, in units of the model's input; of whole numbers 1 at least.
        num_samples: how many images are drawn from it.
        seed: of the noise.
        chunk_size: how many images go through ``explain_fn`` at once; ``None`` for B.

    Returns:
        ``(B,)`` float32; NaN where a map is not finite, and where no draw differs from the image, since the ball is
        smaller than the steps of the images' type.

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
    whole = isinstance(images, Tensor) and not images.is_floating_point()
    attribution, target = check_images(images.float() if whole else images, attribution, target)
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}.")
    generator = torch.Generator().manual_seed(seed)
    shape = (max(num_samples, 0), *images.shape[1:])
    reach = max(radius, 1.0) if whole and radius else radius
    noise = torch.empty(shape).uniform_(-reach, reach, generator=generator).to(images.device)
    low, high = (limit(images.flatten(1), 1).view(-1, *[1] * (images.ndim - 1)) for limit in (torch.amin, torch.amax))
    norm = torch.linalg.vector_norm(attribution.flatten(1), dim=1)
    norm = torch.where(norm == 0, 1.0, norm)

    def evaluate(point: Tensor, image: Tensor) -> Tensor:
        moved = images[image].float() + noise[point]
        if whole:
            moved = moved.round().clamp(low[image], high[image])
        moved = moved.to(images.dtype)
        differs = (moved != images[image]).flatten(1).any(1)
        with torch.enable_grad():
            maps = explain_fn(moved, target[image])
        if maps.shape != attribution[image].shape:
            raise ValueError(
                f"the explain function must give maps of the shape of attribution, {tuple(attribution[image].shape)}, "
                f"got {tuple(maps.shape)}."
            )
        change = maps.detach().to(attribution.dtype) - attribution[image]
        relative: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1) / norm[image]
        return torch.where(differs, relative, -torch.inf)  # an image that is no other tells nothing

    with torch.no_grad():
        largest = over_points(evaluate, num_samples, target, chunk_size, len(images)).amax(1)
        return where_finite(torch.where(largest == -torch.inf, torch.nan, largest), attribution)
