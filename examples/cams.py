"""Methods by one interface: this package's family, those of pytorch-grad-cam, RISE and a random map."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egcam_lightning import ExpectedGradCAM, Explanation, Perturbation
from egcam_lightning.explain.explanation import mean_over_layers
from egcam_lightning.explain.token_layout import infer_layout

OURS = "Expected Grad-CAM"
FAMILY = {
    OURS: Perturbation.expected(),
    "Grad-CAM": Perturbation.grad_cam(),
    "HiResCAM": Perturbation.hires_cam(),
    "SmoothGrad-CAM": Perturbation.smooth_grad_cam(),
    "Integrated Grad-CAM": Perturbation.integrated_grad_cam(),
}
# Title, and its class in pytorch-grad-cam. Its Grad-CAM and HiResCAM are the family's (the package's tests hold that).
LIBRARY = {
    "Grad-CAM, rectified": "GradCAM",
    "Grad-CAM++": "GradCAMPlusPlus",
    "LayerCAM": "LayerCAM",
    "XGrad-CAM": "XGradCAM",
    "EigenCAM": "EigenCAM",
}
EXPENSIVE = {"ScoreCAM": "ScoreCAM", "AblationCAM": "AblationCAM"}  # a pass or more for each channel
RISE, RANDOM = "RISE", "random map"
AUTO = "auto"
# Passes through the whole network for a pooled weight each: twice as many move a map by less than its rank.
INPUT_SAMPLES = 16


@dataclass(frozen=True, order=True)
class Row:
    """A method at a layer: ``""`` where it has none, names joined by ``+`` for the mean over several."""

    method: str
    layer: str = ""


@dataclass(eq=False)
class Maps:
    """Maps ``(B, h, w)``, the seconds each took, and what they miss and what there was to explain, ``(B,)``.

    The latter two are known of this package's family only.
    """

    values: Tensor
    seconds: float = 0.0
    missing: Tensor | None = None
    difference: Tensor | None = None


def available() -> dict[str, str]:
    """The methods of pytorch-grad-cam, where it is installed."""
    return {**LIBRARY, **EXPENSIVE} if find_spec("pytorch_grad_cam") else {}


def is_expensive(method: str) -> bool:
    """Whether a method costs hundreds of passes a photograph."""
    return method in EXPENSIVE or method == RISE


class Explainers:
    """Makes maps of photographs by any row, and keeps what a row needs to be set up once.

    Args:
        model: in evaluation mode, from images to logits.
        baselines: ``(R, 3, H, W)``.
        samples: draws an image; ``None`` for the package's default.
        masks: of RISE.

    """

    def __init__(self, model: nn.Module, baselines: Tensor, samples: int | None, masks: int) -> None:
        self.model, self.baselines, self.samples, self.masks = model, baselines, samples, masks
        self._kept: dict[Row, ExpectedGradCAM] = {}

    def __call__(self, rows: Sequence[Row], images: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[Row, Maps]:
        """Maps of images ``(B, 3, H, W)`` by every row.

        Means over layers are made of the layers' own explanations, where these are asked for as well.

        Args:
            rows: what to explain by.
            images: of one batch.
            target: ``(B,)``.
            seeds: of the draws and the random map, one a photograph: its maps are the same in any batch.

        """
        maps: dict[Row, Maps] = {}
        explained: dict[Row, Explanation] = {}
        for row in sorted(rows, key=lambda row: "+" in row.layer):
            begun = time.perf_counter()
            parts = [Row(row.method, layer) for layer in row.layer.split("+")]
            if row.method in FAMILY:
                known = len(parts) > 1 and all(part in explained for part in parts)
                found = explained[row] = (
                    mean_over_layers([explained[part] for part in parts])
                    if known
                    else self._family(row)(images, self.baselines, target, image_index=seeds)
                )
                spent = sum(maps[part].seconds for part in parts) if known else 0.0
                maps[row] = Maps(found.attribution, spent, *missing_of(found))
            else:
                maps[row] = Maps(self._other(row, images, target, seeds))
            maps[row].seconds += (time.perf_counter() - begun) / len(images)
        return maps

    def _other(self, row: Row, images: Tensor, target: Tensor, seeds: Sequence[int]) -> Tensor:
        if row.method == RANDOM:
            return torch.stack([torch.rand(14, 14, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        if row.method == RISE:
            return torch.stack([rise(self.model, *pair, self.masks) for pair in zip(images, target, strict=True)])
        return library(self.model, row, images, target)

    def layer_of(self, row: Row) -> str:
        """The layers that a row of the family finds."""
        return self._family(row).find(self.baselines[:4])

    def _family(self, row: Row) -> ExpectedGradCAM:
        if row not in self._kept:
            layer: Any = row.layer.split("+") if "+" in row.layer else row.layer
            perturbation = FAMILY[row.method]
            through_input = {"num_samples": self.samples or INPUT_SAMPLES} if perturbation.space == "input" else {}
            own = {"num_samples": self.samples} if self.samples else {}
            self._kept[row] = ExpectedGradCAM(self.model, layer, perturbation, **{**own, **through_input})
        return self._kept[row]


def missing_of(found: Explanation) -> tuple[Tensor, Tensor]:
    """What maps fail to account for, and the differences of scores, each ``(B,)``: their ratio is the pooled gap."""
    difference = found.score - found.baseline_score
    return (found.attribution.flatten(1).sum(1) + found.off_grid - difference).abs(), difference.abs()


def library(model: nn.Module, row: Row, images: Tensor, target: Tensor) -> Tensor:
    """Maps ``(B, h, w)`` of pytorch-grad-cam.

    As it computes them, before it rectifies, enlarges and stretches them: a rectified map leaves pixels unordered,
    which the judges would hold against the method. Only the one that says so is as the library hands it out.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    name, size = available()[row.method], tuple(images.shape[2:])

    def to_grid(activation: Tensor) -> Tensor:
        layout = infer_layout(activation.shape[1:], size)
        if layout is None:
            raise ValueError(f"The layer {row.layer!r} has no grid over the image: leave it out of --layers.")
        return layout.to_grid(activation)

    options: dict[str, Any] = {"reshape_transform": to_grid}
    if name == "AblationCAM":
        options["ablation_layer"] = AblationLayerVit() if has_tokens(model, row.layer, images[:1]) else AblationLayer()
    # Its progress bars would bury ours.
    with (
        contextlib.redirect_stderr(io.StringIO()),
        getattr(pytorch_grad_cam, name)(model, [model.get_submodule(row.layer)], **options) as method,
    ):
        if row.method != "Grad-CAM, rectified":

            def as_computed(inputs: Tensor, targets: list[Callable], eigen_smooth: bool) -> Any:
                seen = method.activations_and_grads
                activation = seen.activations[0].numpy()
                gradient = seen.gradients[0].numpy() if seen.gradients else None
                layer = method.target_layers[0]
                return method.get_cam_image(inputs, layer, targets, activation, gradient, eigen_smooth)

            method.compute_cam_per_layer, method.aggregate_multi_layers = as_computed, lambda maps: maps
        maps = method(images, [ClassifierOutputTarget(int(k)) for k in target])
    model.zero_grad(set_to_none=True)
    return torch.as_tensor(maps).float().nan_to_num()


def has_tokens(model: nn.Module, layer: str, image: Tensor) -> bool:
    """Whether a layer gives ``(B, tokens, K)``."""
    seen: list[int] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output.ndim))
    with handle, torch.no_grad():
        model(image)
    return seen[-1] == 3


def rise(model: nn.Module, image: Tensor, target: Tensor, masks: int, cells: int = 7, chunk: int = 16) -> Tensor:
    """RISE (Petsiuk et al., 2018): the mean of random masks, each weighted by the probability behind it.

    Args:
        model: from images to logits.
        image: ``(3, H, W)``; what is masked is 0, the mean colour of a normalised image.
        target: the class.
        masks: how many; a pass each.
        cells: of a mask, a side; each is open with probability 1/2.
        chunk: masks at once.

    Returns:
        ``(H, W)``.

    """
    generator = torch.Generator().manual_seed(0)
    height, width = image.shape[1:]
    step = (-(-height // cells), -(-width // cells))
    total, weight = torch.zeros(height, width), 0.0
    for start in range(0, masks, chunk):
        count = min(chunk, masks - start)
        open_cells = (torch.rand(count, 1, cells + 1, cells + 1, generator=generator) < 0.5).float()
        large = [(cells + 1) * side for side in step]
        fields = F.interpolate(open_cells, size=large, mode="bilinear", align_corners=False)
        down, right = (int(torch.randint(side, (1,), generator=generator)) for side in step)
        fields = fields[:, :, down : down + height, right : right + width]
        with torch.no_grad():
            probability = model(fields * image).softmax(1)[:, target]
        total += (probability.view(-1, 1, 1) * fields[:, 0]).sum(0)
        weight += float(fields.mean() * count)
    return total / weight
