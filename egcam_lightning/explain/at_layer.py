"""Explaining images at a layer, or at several at once: capture them, test the layer, draw, weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.captured import Captured, capture_at, replay, rows_of
from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.explain.cut_test import CutTest, find_cut
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.explain.inputs import as_targets
from egcam_lightning.explain.path_gradients import PathGradients
from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.sampling import Draws, sample_draws
from egcam_lightning.explain.scores import OutputScore, in_float
from egcam_lightning.explain.split_model import SplitModel
from egcam_lightning.explain.token_layout import Layout
from egcam_lightning.explain.weightings import check_activation


@dataclass(frozen=True, eq=False, kw_only=True)
class AtLayer:
    """How images are explained at one layer.

    Attributes:
        model: the model, left as it was by each trial.
        split: the model, split at the layer.
        layout: how the layer's positions lie on the image.
        perturbation: where gradients are taken, and how they are weighted.
        score: what is explained.
        num_samples: samples per image.
        seed: the user's seed.
        image_chunks: how many images go through the whole model at once.
        point_chunks: how many points go through the part behind the layer at once.

    """

    model: nn.Module
    split: SplitModel
    layout: Layout
    perturbation: Perturbation
    score: OutputScore
    num_samples: int
    seed: int
    image_chunks: Chunks
    point_chunks: Chunks

    def find_cut(self, images: Captured, baselines: Captured | None = None) -> CutTest:
        """Whether the layer is a cut of the network, as far as images and baselines tell."""
        return find_cut(self.model, self.split, images, baselines, self.image_chunks, self.point_chunks, self.seed)

    def explain(
        self,
        images: Captured,
        baselines: Captured | None,
        targets: Tensor,
        draws: Draws | None,
        image_index: list[int],
    ) -> tuple[Explanation, bool]:
        """Explain images, as the layer sees them and their baselines.

        Args:
            images: the ``B`` images.
            baselines: the ``R`` baselines; where the model has other inputs, ``R`` for each image, seen with its own.
            targets: ``(B,)`` int64, or ``(B, classes)`` bool.
            draws: samples to use instead of the layer's own.
            image_index: an index for each image, by which its samples are drawn.

        Returns:
            The explanation, and whether paths had to run between images although they were to run between activations.

        """
        perturbation, kind = self.perturbation, self.perturbation.baseline
        inputs, others = images.inputs, images.others
        score_of = self.score.bind(in_float(images.output), targets)
        in_activations = perturbation.space == "activation"
        test = self.find_cut(images, baselines) if in_activations or kind == "none" else CutTest(None, True)
        # The gradient at the image itself is the same, whichever way it is had.
        differs = in_activations and not test.is_cut and not (kind == "none" and perturbation.noise == 0)
        check_activation(perturbation.weighting, images.activation, self.split.name)
        gradients = PathGradients(
            perturbation=perturbation,
            seed=self.seed,
            image_chunks=self.image_chunks,
            point_chunks=self.point_chunks,
            split=self.split,
            layout=self.layout,
            images=images,
            baselines=baselines,
            score_of=score_of,
            linear_score=self.score.linear,
            host_image=test.host_image if in_activations else None,
        )
        own = 1 if baselines is None else len(baselines) // (len(inputs) if others else 1)
        if draws is None:
            draws = sample_draws(self.num_samples, own, image_index, perturbation.interval, self.seed)
        index, every = draws.baseline_index.to(inputs.device), torch.arange(len(inputs), device=inputs.device)
        # Which row of the baselines as they were seen: with other inputs, there is one for each image.
        row = index + every * own if baselines is not None and others else index
        weight = None if draws.weight is None else draws.weight.to(inputs.device)
        draws = Draws(row, draws.place.to(inputs.device), draws.noise, weight)
        maps, off_grid = gradients.maps(draws, image_index)

        score = gradients.score(images.output, every)
        if baselines is not None:
            scores = gradients.scores(baselines, row.flatten(), every.repeat(len(draws.place)))
            baseline_score = scores.view_as(draws.place).mean(0)
        elif test.host_image is not None:
            few = len(inputs) if others else 1  # without other inputs, nothing is the same for all
            zeros = torch.zeros_like(images.activation[:few])
            nothing = replay(self.split, zeros, test.host_image, self.point_chunks, others)
            baseline_score = gradients.score(nothing.expand(len(inputs), *nothing.shape[1:]), every)
        else:
            baseline_score = torch.full_like(score, torch.nan)
        explanation = Explanation.from_draws(
            maps,
            off_grid.mean(0),
            # Of a set, the class that the model holds most likely stands for it.
            target=targets if targets.ndim == 1 else images.output.masked_fill(~targets, -torch.inf).argmax(1),
            prediction=self.score.predict(images.output),
            score=score,
            baseline_score=baseline_score,
            baseline_index=index if baselines is not None else -torch.ones_like(index),
            size=tuple(inputs.shape[2:]),
            layer=self.split.name,
        )
        return explanation, differs and test.tells_images_apart


def explain_at(
    layers: Sequence[AtLayer],
    inputs: Tensor,
    baselines: Tensor | None,
    others: tuple[Any, ...],
    target: Tensor | int | None,
    draws: Draws | None,
    image_index: list[int],
) -> list[tuple[Explanation, bool]]:
    """Explain images at several layers of one model, which sees images and baselines once for all of them.

    The arguments are those of the explainer; what is returned is that of :meth:`AtLayer.explain`, one a layer.
    """
    first = layers[0]
    splits = [layer.split for layer in layers]
    references = {"data": baselines, "zeros": torch.zeros_like(inputs[:1]), "none": None}[first.perturbation.baseline]
    images = capture_at(splits, inputs, first.image_chunks, others)
    targets = as_targets(target, images[0].output, len(inputs), inputs.device, first.score)
    seen: Sequence[Captured | None] = [None] * len(layers)
    if references is not None and others:  # each baseline as it is seen with what each image is seen with
        every = torch.arange(len(inputs), device=inputs.device).repeat_interleave(len(references))
        repeated = references.repeat(len(inputs), *[1] * (references.ndim - 1))
        seen = capture_at(splits, repeated, first.image_chunks, rows_of(others, every))
    elif references is not None:
        seen = capture_at(splits, references, first.image_chunks)
    return [
        layer.explain(shown, behind, targets, draws, image_index)
        for layer, shown, behind in zip(layers, images, seen, strict=True)
    ]
