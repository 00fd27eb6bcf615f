"""Does the map foretell what changes of the image do to the score?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages, bound
from egcam_lightning.metrics.functional._maps import check_maps, where_finite
from egcam_lightning.metrics.functional._protocol import ScoreFunction
from egcam_lightning.metrics.functional.fidelity import block_effects, infidelity_of


class Infidelity(MeanOverImages):
    """How far the map is from saying what happens to the score when blocks of the image are blurred; lower is better.

    See :func:`~egcam_lightning.metrics.functional.infidelity` for the definition.

    Range: [0, 1], 0 is perfect and 1 no better than an empty map; [0, inf) with ``normalize=False``. Cost:
    ``num_perturbations`` forward passes per image, one more where ``scores`` is not given to ``update``. Paper: Yeh et
    al., *On the (In)fidelity and Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the score that the map explains, usually a logit; may
            be set later as an attribute.
        num_perturbations: the number of blocks.
        normalize: scale the map to fit and the value to [0, 1]; ``False`` for the definition of Yeh et al.
        seed: of the blocks; the same for every image, batch and rank.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        unaffected: how many images had a score that no block changed; their value is 1 (with ``normalize=True``).
        skipped: how many images had a map or a score that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = Infidelity(lambda images, target: images.sum((1, 2, 3)))
        >>> metric.update(torch.rand(2, 1, 8, 8), torch.zeros(2, 4, 4), torch.tensor([0, 1]))
        >>> round(float(metric.compute()), 4)
        1.0

    """

    higher_is_better: bool = False
    is_differentiable: bool = True
    unaffected: Tensor

    def __init__(
        self,
        score_fn: ScoreFunction | None = None,
        num_perturbations: int = 12,
        normalize: bool = True,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.score_fn = score_fn
        self.num_perturbations = num_perturbations
        self.normalize = normalize
        self.seed = seed
        self.chunk_size = chunk_size
        self.add_state("unaffected", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        images: Tensor,
        attribution: Tensor,
        target: Tensor,
        scores: Tensor | None = None,
        replacement: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            images: ``(B, C, H, W)``.
            attribution: ``(B, h, w)``, signed.
            target: ``(B,)`` int64.
            scores: ``(B,)``, the scores of the images where they are known.
            replacement: ``(B, C, H, W)``, what a block is replaced by; ``None`` for a blurred copy.

        """
        predicted, drop = block_effects(
            bound(self.score_fn, self, "score_fn"),
            images,
            attribution,
            target,
            num_perturbations=self.num_perturbations,
            seed=self.seed,
            chunk_size=self.chunk_size,
            scores=scores,
            replacement=replacement,
        )
        values = where_finite(infidelity_of(predicted, drop, normalize=self.normalize), check_maps(attribution))
        self._add(values)
        self.unaffected = self.unaffected + (values.isfinite() & (drop == 0).all(1)).sum()
