"""Does the map hold still where the image hardly moves?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages, bound
from egcam_lightning.metrics.functional._protocol import ExplainFunction
from egcam_lightning.metrics.functional.sensitivity import max_sensitivity


class MaxSensitivity(MeanOverImages):
    """Largest relative change of the map among images drawn from a small ball around the image; lower is better.

    See :func:`~egcam_lightning.metrics.functional.max_sensitivity` for the definition.

    Range: [0, inf). Cost: ``num_samples`` explanations per image. Paper: Yeh et al., *On the (In)fidelity and
    Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        explain_fn: ``(images (N, C, H, W), target (N,)) -> (N, h, w)``; may be set later as an attribute.
        radius: of the ball, in units of the model's input; of whole numbers 1 at least.
        num_samples: how many images are drawn from it.
        seed: of the draws; the same noise for every image, batch and rank.
        chunk_size: how many images go through ``explain_fn`` at once; ``None`` for a batch.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had a map that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = MaxSensitivity(lambda images, target: images.mean(1))
        >>> images = torch.ones(2, 3, 4, 4)
        >>> metric.update(images, images.mean(1), torch.tensor([0, 1]))
        >>> bool(metric.compute() <= 0.02)
        True

    """

    takes_input_type: bool = True  # it has to move images by what their type can hold
    higher_is_better: bool = False

    def __init__(
        self,
        explain_fn: ExplainFunction | None = None,
        radius: float = 0.02,
        num_samples: int = 10,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.explain_fn = explain_fn
        self.radius = radius
        self.num_samples = num_samples
        self.seed = seed
        self.chunk_size = chunk_size

    def update(self, images: Tensor, attribution: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            images: ``(B, C, H, W)``, of the type that ``explain_fn`` takes, of whole numbers too.
            attribution: ``(B, h, w)``, what ``explain_fn`` gives for the images.
            target: ``(B,)`` int64.

        """
        self._add(
            max_sensitivity(
                bound(self.explain_fn, self, "explain_fn"),
                images,
                attribution,
                target,
                radius=self.radius,
                num_samples=self.num_samples,
                seed=self.seed,
                chunk_size=self.chunk_size,
            )
        )
