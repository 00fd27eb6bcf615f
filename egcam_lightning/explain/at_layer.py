"""Explaining images at one layer: capture them, test the layer, draw, weigh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.captured import Captured, replay, rows_of
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
        inputs: Tensor,
        baselines: Tensor | None,
        others: tuple[Any, ...],
        target: Tensor | int | None,
        draws: Draws | None,
        image_index: list[int],
    ) -> tuple[Explanation, bool]:
        """Explain images; the arguments are those of the explainer.

        Returns:
            The explanation, and whether paths had to run between images although they were to run between activations.

        """
        perturbation, kind = self.perturbation, self.perturbation.baseline
        references = {"data": baselines, "zeros": torch.zeros_like(inputs[:1]), "none": None}[kind]
        images = Captured.of(self.split, inputs, self.image_chunks, others)
        targets = as_targets(target, images.output, len(inputs), inputs.device, self.score)
        score_of = self.score.bind(in_float(images.output), targets)
        seen = None if references is None else self._see_baselines(references, inputs, others)

        in_activations = perturbation.space == "activation"
        test = self.find_cut(images, seen) if in_activations or kind == "none" else CutTest(None, True)
        # The gradient at the image itself is the same, whichever way it is had.
        differs = in_activations and not test.is_cut and not (kind == "none" and perturbation.noise == 0)
        gradients = PathGradients(
            perturbation=perturbation,
            seed=self.seed,
            image_chunks=self.image_chunks,
            point_chunks=self.point_chunks,
            split=self.split,
            layout=self.layout,
            images=images,
            baselines=seen,
            score_of=score_of,
            linear_score=self.score.linear,
            host_image=test.host_image if in_activations else None,
        )
        if draws is None:
            rows = 1 if references is None else len(references)
            draws = sample_draws(self.num_samples, rows, image_index, perturbation.interval, self.seed)
        index, every = draws.baseline_index.to(inputs.device), torch.arange(len(inputs), device=inputs.device)
        # Which row of the baselines as they were seen: with other inputs, there is one for each image.
        row = index + every * len(references) if references is not None and others else index
        draws = Draws(row, draws.place.to(inputs.device), draws.noise)
        maps, off_grid = gradients.maps(draws, image_index)

        score = gradients.score(images.output, every)
        if seen is not None:
            scores = gradients.score(seen.output[row.flatten()], every.repeat(len(draws.place)))
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
            baseline_index=index if references is not None else -torch.ones_like(index),
            size=tuple(inputs.shape[2:]),
            layer=self.split.name,
        )
        return explanation, differs and test.tells_images_apart

    def _see_baselines(self, references: Tensor, inputs: Tensor, others: tuple[Any, ...]) -> Captured:
        """Baselines as the model sees them: each with what each image is seen with."""
        if not others:
            return Captured.of(self.split, references, self.image_chunks)
        every = torch.arange(len(inputs), device=inputs.device).repeat_interleave(len(references))
        repeated = references.repeat(len(inputs), *[1] * (references.ndim - 1))
        return Captured.of(self.split, repeated, self.image_chunks, rows_of(others, every))
