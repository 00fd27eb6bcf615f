"""Expected Grad-CAM as one of pytorch-grad-cam's methods: import it from here, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from egcam_lightning.explain.estimator import ExpectedGradCAM as Explainer
from egcam_lightning.explain.perturbation import Perturbation, Weighting

Array = npt.NDArray[np.float32]


class ExpectedGradCAM(BaseCAM):  # type: ignore[misc]
    """Expected Grad-CAM (Buono et al., TMLR 2026) with the interface of ``pytorch_grad_cam.GradCAM``.

    Called with images and targets, it gives maps in [0, 1] at the images' size; it is a context manager as well. Maps
    of several layers are scaled and averaged, as there. The model is left as it was, and has no hooks between calls.

    Args:
        model: the model, put into evaluation mode as pytorch-grad-cam does.
        target_layers: modules whose activations are explained.
        reshape_transform: from a layer's activation to ``(B, K, h, w)``, for transformers.
        baselines: ``(R, C, H, W)``, training images as the model takes them, which make the maps data-aware; ``None``
            for the all-zero input.
        num_samples: draws per image.
        weighting: see :class:`~egcam_lightning.Perturbation`; ``None`` for the complete one.
        seed: of the draws.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        ... )
        >>> with ExpectedGradCAM(model=model, target_layers=[model[1]]) as cam:
        ...     maps = cam(input_tensor=torch.rand(2, 3, 16, 16), targets=[ClassifierOutputTarget(3)] * 2)
        >>> maps.shape, maps.dtype
        ((2, 16, 16), dtype('float32'))

    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        baselines: Tensor | None = None,
        num_samples: int = 32,
        weighting: Weighting | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.activations_and_grads.release()  # its hooks; ours are there during a pass only
        self.baselines = baselines
        self._targets: Sequence[Callable[[Tensor], Tensor]] = ()
        perturbation = Perturbation(baseline="zeros" if baselines is None else "data")
        self._settings: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
        self._settings |= {"perturbation": perturbation, "weighting": weighting, "reshape_transform": reshape_transform}
        self._explainers: dict[tuple[bool, bool], Explainer] = {}

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None,
        eigen_smooth: bool = False,
    ) -> Array:
        """Explain images, as :class:`BaseCAM` does; called by ``cam(...)``.

        Args:
            input_tensor: ``(B, C, H, W)``.
            targets: for each image a callable from its output to a number; ``None`` for the predicted class.
            eigen_smooth: whether to take the first principal component instead of the sum over channels.

        Returns:
            ``(B, H, W)``, each map in [0, 1].

        Raises:
            ValueError: for another number of targets than images.

        """
        images = input_tensor.to(self.device)
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"Expected `targets` for {len(images)} images, but got {len(targets)}.")
        self._targets = () if targets is None else targets
        target = self._classes()
        own_targets = target is None and targets is not None
        if own_targets:
            target = torch.arange(len(images))  # by which the score finds each image's own
        explainer = self._explainer(eigen_smooth, own_targets=own_targets)
        baselines = None if self.baselines is None else self.baselines.to(self.device)
        with torch.no_grad():
            self.outputs = explainer.forward(images)
        size = self.get_target_width_height(images)
        found = explainer.each(images, baselines, None if target is None else target.to(self.device))
        maps = [np.maximum(one.attribution.cpu().numpy(), 0) for one in found]
        return np.asarray(self.aggregate_multi_layers([scale_cam_image(one, size)[:, None] for one in maps]))

    def _classes(self) -> Tensor | None:
        """The classes that are asked for, where targets are nothing else."""
        plain: list[Any] = [one for one in self._targets if type(one) is ClassifierOutputTarget]
        classes = [one.category for one in plain]
        return torch.tensor(classes).long() if classes and len(classes) == len(self._targets) else None

    def _explainer(self, eigen_smooth: bool, *, own_targets: bool) -> Explainer:
        settings = self._settings | ({"weighting": "eigen"} if eigen_smooth else {})
        if own_targets:
            settings["score"] = self._score
        key = eigen_smooth, own_targets
        if key not in self._explainers:
            self._explainers[key] = Explainer(self.model, self.target_layers, **settings)
        return self._explainers[key]

    def _score(self, output: Any, rows: Tensor) -> Tensor:
        """What each image's own target makes of its output; the rows stand for the targets."""
        return torch.stack([self._targets[row](one) for row, one in zip(rows.tolist(), output, strict=True)])

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        self.activations_and_grads.release()
