"""The passes of one explanation: points on the paths, their gradients, and the map of every draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from egcam_lightning.explain.captured import Captured, rows_of
from egcam_lightning.explain.chunking import Chunks, images_at_once, points_at_once
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.linearity import is_linear
from egcam_lightning.explain.optimal_weights import optimal_weights
from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.precision import resolution
from egcam_lightning.explain.sampling import Draws, sample_noise
from egcam_lightning.explain.scores import check_score, in_float
from egcam_lightning.explain.split_model import SplitModel
from egcam_lightning.explain.token_layout import Layout
from egcam_lightning.explain.weightings import WEIGHTINGS, weighted

# How far products with a gradient that is the same everywhere may be from the differences of scores: as a share of the
# largest.
_TOLERANCE = 1e-3


class _NotLinear(Exception):
    """A part of a network that was taken for linear is not."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PathGradients:
    """What the passes of one explanation compute with.

    Attributes:
        perturbation: where gradients are taken, and how they are weighted.
        seed: seed of the noise.
        image_chunks: how many images go through the whole model at once.
        point_chunks: how many points go through the part behind the layer at once.
        split: the model, split at the layer.
        layout: how the layer's positions lie on the image.
        images: the images that are explained.
        baselines: their baselines, as they are seen; ``None`` without.
        score_of: from (output, rows of the images) to one score per point.
        linear_score: whether the score is linear in the model's output.
        host_image: ``(1, C, H, W)``, see :meth:`SplitModel.from_points`; ``None`` where paths run between images
            instead of activations.

    """

    perturbation: Perturbation
    seed: int
    image_chunks: Chunks
    point_chunks: Chunks
    split: SplitModel
    layout: Layout
    images: Captured
    baselines: Captured | None
    score_of: Callable[[Tensor, Tensor], Tensor]
    linear_score: bool
    host_image: Tensor | None

    def score(self, output: Tensor, rows: Tensor) -> Tensor:
        """``(n,)`` float32: the scores of points, each belonging to one of the images."""
        return check_score(self.score_of(in_float(output), rows), len(rows))

    def scores(self, seen: Captured, which: Tensor, rows: Tensor) -> Tensor:
        """``(n,)`` float32: the scores of some of what was seen, each for one of the images, any number of times."""
        parts: list[Tensor] = []  # an output may be as large as an image

        def one(chunk: slice) -> None:
            parts.append(self.score(seen.output[which[chunk]], rows[chunk]))

        Chunks().run(len(which), points_at_once(seen.output), one)
        return torch.cat(parts)

    @property
    def _between_activations(self) -> bool:
        return self.host_image is not None

    def _base_of(self, captured: Captured) -> Tensor:
        """What paths run between."""
        return captured.activation if self._between_activations else captured.inputs

    def maps(self, draws: Draws, image_index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The signed map ``(S, B, h, w)`` and the off-grid attribution ``(S, B)`` of every draw, by its weight."""
        samples, images = draws.place.shape
        base = self._base_of(self.images)
        chunks, size = (
            (self.point_chunks, self.images.points_at_once)
            if self._between_activations
            else (self.image_chunks, images_at_once(base))
        )
        if draws.noise is not None and draws.noise.shape[2:] != base.shape[1:]:
            raise ValueError(
                f"Expected `noise` of the shape of the {'activation' if self._between_activations else 'input'}, "
                f"{(samples, images, *base.shape[1:])}, but got {tuple(draws.noise.shape)}."
            )
        image = torch.arange(images, device=self.images.inputs.device).repeat(samples)
        baseline, alpha = draws.baseline_index.flatten(), draws.place.flatten().float()
        over_all = partial(chunks.run, samples * images, size)

        def run(chunk: slice, *, recorded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Of a chunk of draws the images, the differences along their paths, the layer at them, and the output."""
            rows, columns = image[chunk], baseline[chunk]
            difference = self._difference(rows, columns)
            noise = self._noise(draws, chunk, base, image_index)
            points = self._points(rows, columns, alpha[chunk], noise, difference)
            with torch.set_grad_enabled(recorded):
                others = rows_of(self.images.others, rows)
                if self.host_image is not None:
                    leaf, output = self.split.from_points(points, self.host_image, *others)
                else:
                    leaf, output = self.split.from_images(points, *others)
            return rows, difference, leaf, output

        if self.perturbation.weighting == "optimal":
            maps = self._by_optimal_weights(partial(run, recorded=False), over_all, image, baseline, draws)
            return maps.view(samples, images, *self.layout.grid), torch.zeros_like(draws.place, dtype=torch.float32)
        gradients = self._constant_gradients()
        if gradients is not None:
            found = self._linear_maps(gradients, image.view(samples, images), draws.baseline_index)
            if found is not None:
                return found
        maps = torch.empty(samples * images, *self.layout.grid, device=self.images.inputs.device)
        off_grid = torch.zeros(samples * images, device=self.images.inputs.device)

        def one(chunk: slice) -> None:
            rows, difference, leaf, output = run(chunk, recorded=True)
            with torch.enable_grad():
                gradient = gradient_at(leaf, self.score(output, rows))
            if gradient is None:
                raise ValueError(
                    f"No gradient of the score reaches the layer {self.split.name!r}: the model detaches its features "
                    "behind it, or does not use it. Pass a `target_layer` that the logits are computed from."
                )
            maps[chunk], off_grid[chunk] = self._weigh(gradient, difference, rows)

        over_all(one)
        if draws.weight is not None:
            weight = draws.weight.flatten()
            off_grid *= weight
            maps *= weight.view(-1, *[1] * len(self.layout.grid))
        return maps.view(samples, images, *self.layout.grid), off_grid.view(samples, images)

    def _by_optimal_weights(
        self,
        run: Callable[[slice], tuple[Tensor, Tensor, Tensor, Tensor]],
        over_all: Callable[[Callable[[slice], None]], None],
        image: Tensor,
        baseline: Tensor,
        draws: Draws,
    ) -> Tensor:
        """``(S * B, h, w)``: maps by the weights that the draws' own changes of the score are predicted best with."""
        changes: list[Tensor] = []
        maps = torch.empty(len(image), *self.layout.grid, device=image.device)

        def change(chunk: slice) -> None:
            rows, _, leaf, output = run(chunk)
            changes.append(self._changes(leaf, output, rows))

        def weigh(chunk: slice) -> None:
            rows = image[chunk]
            placed = self.layout.to_grid(self._difference(rows, baseline[chunk]))
            maps[chunk] = weighted(weights[rows] / placed[0, 0].numel(), placed)

        over_all(change)
        together = torch.cat(changes).view(*draws.place.shape, -1)
        weights = optimal_weights(together[..., :-1], together[..., -1], draws.weight)
        over_all(weigh)
        return maps

    def _constant_gradients(self) -> Tensor | None:
        """``(B, ...)``: each image's gradient at the layer, where it is the same all along the paths; else ``None``."""
        host_image = self.host_image
        if host_image is None or not self.linear_score:
            return None
        gradients: list[Tensor] = []

        def one(chunk: slice) -> None:
            rows = torch.arange(chunk.start, chunk.stop, device=self.images.inputs.device)
            with torch.enable_grad():
                leaf, output = self.split.from_points(
                    self.images.activation[chunk], host_image, *rows_of(self.images.others, chunk)
                )
                gradient = gradient_at(leaf, self.score(output, rows)) if is_linear(output, leaf) else None
            if gradient is None:  # at the first chunk as a rule; at a later one the model takes another way with it
                raise _NotLinear
            gradients.append(gradient)

        try:
            self.point_chunks.run(len(self.images.inputs), self.images.points_at_once, one)
        except _NotLinear:
            return None
        return torch.cat(gradients)

    def _linear_maps(self, gradients: Tensor, image: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor] | None:
        """What :meth:`maps` gives, from one product for each pair of an image and a baseline that is drawn.

        It is the map of the whole path, so that all draws of it count alike.

        ``None`` where the products are not the differences of the scores: then the part behind the layer is linear at
        the images, and takes another way between them and the baselines.
        """
        count = 1 if self.baselines is None else len(self.baselines)
        pairs, drawn = torch.unique(image * count + baseline.clamp(min=0) % count, return_inverse=True)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []

        def one(chunk: slice) -> None:
            rows = pairs[chunk] // count
            gradient, difference = gradients[rows], self._difference(rows, pairs[chunk] % count)
            total = (gradient * difference).flatten(1).sum(1)
            parts.append((*self._weigh(gradient, difference, rows), total))

        self.point_chunks.run(len(pairs), points_at_once(self.images.activation), one)
        maps, off_grid, totals = (torch.cat(values) for values in zip(*parts, strict=True))
        if self.baselines is not None:
            rows = pairs // count
            score, other = self.scores(self.images, rows, rows), self.scores(self.baselines, pairs % count, rows)
            rounding = (
                4 * resolution(self.images.activation, self.images.output) * torch.maximum(score.abs(), other.abs())
            )
            allowed = torch.maximum(_TOLERANCE * (score - other).abs().max(), rounding)
            if bool(((totals - (score - other)).abs() > allowed).any()):
                return None
        return maps[drawn], off_grid[drawn]

    def _points(self, rows: Tensor, columns: Tensor, alpha: Tensor, noise: Tensor | None, difference: Tensor) -> Tensor:
        """The perturbed activations or images of a chunk of draws; ``difference`` is that of their activations."""
        values = self._base_of(self.images)
        origin = None if self.baselines is None else self._base_of(self.baselines)
        # Points are the largest tensors here, and each pass over them takes its time: hence in alpha.
        if origin is None:
            points = values[rows].float()
        else:
            points = origin[columns].float()
            if not self._between_activations:
                difference = values[rows].float() - points
            points.addcmul_(difference, alpha.view(-1, *[1] * (points.ndim - 1)))
        if noise is not None:
            points += self.perturbation.noise * self._deviation(values)[rows] * noise
        if self._between_activations:
            return points
        if not self.images.inputs.is_floating_point():  # images of whole numbers, which the model itself normalises
            limits = torch.iinfo(self.images.inputs.dtype)
            points = points.round().clamp(limits.min, limits.max)
        return points.to(self.images.inputs.dtype)

    def _difference(self, rows: Tensor, columns: Tensor) -> Tensor:
        difference = self.images.activation[rows].float()
        if self.baselines is not None:
            difference -= self.baselines.activation[columns]
        return difference

    def _deviation(self, values: Tensor) -> Tensor:
        """The standard deviation over positions, for each image and channel, ready to be broadcast."""
        values = values.float()
        if not self._between_activations or not self.layout.channels_last:
            positions = list(range(2, values.ndim))
        else:
            positions = list(range(1, values.ndim - 1))
        return values.std(positions, correction=0, keepdim=True)

    def _noise(self, draws: Draws, chunk: slice, base: Tensor, image_index: Sequence[int]) -> Tensor | None:
        if draws.noise is not None:
            return draws.noise.flatten(0, 1)[chunk].to(base.device)
        if self.perturbation.noise == 0:
            return None
        pairs = range(chunk.start, chunk.stop)
        count = len(image_index)
        images, samples = [image_index[p % count] for p in pairs], [p // count for p in pairs]
        # The CPU draws the next chunk's while a device works on this one; a copy from ordinary memory is safe to leave
        # to itself there, but not on every other device.
        return sample_noise(base.shape[1:], images, samples, self.seed).to(
            base.device, non_blocking=base.device.type != "mps"
        )

    def _changes(self, point: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        """``(n, K + 1)``: from points to their images, the change of each channel's mean and, last, of the score."""
        change = self.layout.to_grid(self.images.activation[rows].float() - point.float()).flatten(2).mean(2)
        score = self.score(self.images.output[rows], rows) - self.score(output, rows)
        return torch.cat([change, score[:, None]], 1)

    def _weigh(self, gradient: Tensor, difference: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gradients and differences into signed maps ``(n, h, w)`` and off-grid attribution ``(n,)``."""
        weighting = self.perturbation.weighting
        if weighting != "elementwise":
            activation = self.images.activation[rows].float()
            placed = (self.layout.to_grid(part) for part in (gradient.float(), difference, activation))
            maps = WEIGHTINGS[weighting](*placed)
            if self.layout.covers_all:
                return maps, maps.new_zeros(len(maps))
        product = difference.mul_(gradient)  # in alpha: nothing needs the differences any more
        on_grid = self.layout.to_grid(product).sum(1)
        if self.layout.covers_all:
            return on_grid, on_grid.new_zeros(len(on_grid))
        off_grid = product.flatten(1).sum(1) - on_grid.flatten(1).sum(1)
        return on_grid if weighting == "elementwise" else maps, off_grid
