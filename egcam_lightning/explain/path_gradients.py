"""The passes of one explanation: points on the paths, their gradients, and the map of every draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.explain.chunking import Chunks, images_at_once, points_at_once
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.linearity import is_linear
from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.precision import resolution
from egcam_lightning.explain.sampling import Draws, sample_noise
from egcam_lightning.explain.scores import check_rows, check_score, in_float
from egcam_lightning.explain.split_model import SplitModel, attempt, host_image_like, varies
from egcam_lightning.explain.token_layout import Layout

# How far products with a gradient that is the same everywhere may be from the differences of scores: as a share of the
# largest.
_TOLERANCE = 1e-3


def rows_of(others: Sequence[Any], rows: Tensor | slice) -> tuple[Any, ...]:
    """Rows of the model's other inputs; what is no tensor is the same for all."""
    return tuple(other[rows] if isinstance(other, Tensor) else other for other in others)


def capture(cut: SplitModel, images: Tensor, chunks: Chunks, others: Sequence[Any] = ()) -> tuple[Tensor, Tensor]:
    """The activation at a layer and the model's output, for any number of images and the model's other inputs."""
    activations: list[Tensor] = []
    outputs: list[Tensor] = []

    def one(chunk: slice) -> None:
        activation, output = cut.capture(images[chunk], *rows_of(others, chunk))
        check_rows(output, len(images[chunk]))
        activations.append(activation)
        outputs.append(output)

    chunks.run(len(images), images_at_once(images), one)
    return torch.cat(activations), torch.cat(outputs)


def replay(cut: SplitModel, points: Tensor, host_image: Tensor, chunks: Chunks, others: Sequence[Any] = ()) -> Tensor:
    """The model's output for any number of activations ``(n, ...)`` at a layer and the model's other inputs."""
    outputs: list[Tensor] = []

    def one(chunk: slice) -> None:
        outputs.append(cut.from_points(points[chunk], host_image, *rows_of(others, chunk))[1])

    chunks.run(len(points), points_at_once(points), one)
    return torch.cat(outputs)


class _NotLinear(Exception):
    """A part of a network that was taken for linear is not."""


@dataclass(eq=False)
class PathGradients:
    """What one explanation computes with.

    Attributes:
        perturbation: where gradients are taken, and how they are weighted.
        seed: seed of the noise.
        image_chunks: how many images go through the whole model at once.
        point_chunks: how many points go through the part behind the layer at once.
        cut: the layer.
        layout: how its positions lie on the image.
        inputs: ``(B, C, H, W)``, the images.
        others: the model's other inputs, with a row per image.
        activation: theirs at the layer, in its own layout.
        output: the model's output for them.
        score_of: from (output, rows of the images) to one score a point.
        host_image: ``(1, C, H, W)``, see :meth:`Cut.from_points`.
        baseline_inputs: ``(R, C, H, W)``, or ``None`` without baselines.
        baseline_activation: theirs at the layer.
        baseline_output: the model's output for them.
        baseline_others: the model's other inputs that they are seen with.
        linear_score: whether the score is linear in the model's output.
        tells_images_apart: whether the model's output depends on the image at all.
        from_points: whether paths run between activations, else between images.

    """

    perturbation: Perturbation
    seed: int
    image_chunks: Chunks
    point_chunks: Chunks
    cut: SplitModel
    layout: Layout
    inputs: Tensor
    others: tuple[Any, ...]
    activation: Tensor
    output: Tensor
    score_of: Callable[[Tensor, Tensor], Tensor]
    host_image: Tensor
    baseline_inputs: Tensor | None = None
    baseline_activation: Tensor | None = None
    baseline_output: Tensor | None = None
    baseline_others: tuple[Any, ...] = ()
    linear_score: bool = False
    tells_images_apart: bool = True
    from_points: bool = False

    def score(self, output: Tensor, rows: Tensor) -> Tensor:
        """``(n,)`` float32: the scores of points, each belonging to one of the images."""
        return check_score(self.score_of(in_float(output), rows), len(rows))

    def is_cut(self) -> bool:
        """Whether the layer is a cut of the network, as far as these images, their baselines and the carrier tell."""
        activation, output, others = self.activation, self.output, self.others
        # Few images may not tell whether the output varies: let baselines help, or else a noise image.
        if len(activation) < 4 and self.baseline_activation is not None and self.baseline_output is not None:
            activation = torch.cat([activation, self.baseline_activation[:4]])
            output = torch.cat([output, self.baseline_output[:4]])
            others = _joined(others, rows_of(self.baseline_others, slice(4)))
        if not varies(output):
            first = rows_of(self.others, slice(1))
            noise = host_image_like(self.inputs, seed=1)
            other = attempt(lambda: capture(self.cut, noise, self.image_chunks, first))
            if other is not None:
                activation, output = torch.cat([activation, other[0]]), torch.cat([output, other[1]])
                others = _joined(others, first)
        self.tells_images_apart = varies(output)
        return self.cut.holds(
            activation,
            output,
            self.host_image,
            replay=lambda: replay(self.cut, activation, self.host_image, self.point_chunks, others),
        )

    def maps(self, draws: Draws, image_index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The signed map ``(S, B, h, w)`` and the off-grid attribution ``(S, B)`` of every draw."""
        samples, images = draws.place.shape
        base = self.activation if self.from_points else self.inputs
        chunks, size = (
            (self.point_chunks, points_at_once(base)) if self.from_points else (self.image_chunks, images_at_once(base))
        )
        if draws.noise is not None and draws.noise.shape[2:] != base.shape[1:]:
            raise ValueError(
                f"Expected `noise` of the shape of the {'activation' if self.from_points else 'input'}, "
                f"{(samples, images, *base.shape[1:])}, but got {tuple(draws.noise.shape)}."
            )
        image = torch.arange(images, device=self.inputs.device).repeat(samples)
        baseline, place = draws.baseline_index.flatten(), draws.place.flatten().float()
        gradients = self._constant_gradients()
        if gradients is not None:
            found = self._linear_maps(gradients, image.view(samples, images), draws.baseline_index)
            if found is not None:
                return found
        maps = torch.empty(samples * images, *self.layout.grid, device=self.inputs.device)
        off_grid = torch.zeros(samples * images, device=self.inputs.device)

        def one(chunk: slice) -> None:
            rows, columns = image[chunk], baseline[chunk]
            difference = self._difference(rows, columns)
            noise = self._noise(draws, chunk, base, image_index)
            points = self._points(rows, columns, place[chunk], noise, difference)
            with torch.enable_grad():
                others = rows_of(self.others, rows)
                if self.from_points:
                    leaf, output = self.cut.from_points(points, self.host_image, *others)
                else:
                    leaf, output = self.cut.from_images(points, *others)
                gradient = gradient_at(leaf, self.score(output, rows))
            if gradient is None:
                raise ValueError(
                    f"No gradient of the score reaches the layer {self.cut.name!r}: the model detaches its features "
                    "behind it, or does not use it. Pass a `target_layer` that the logits are computed from."
                )
            maps[chunk], off_grid[chunk] = self._weigh(gradient, difference)

        chunks.run(samples * images, size, one)
        return maps.view(samples, images, *self.layout.grid), off_grid.view(samples, images)

    def _constant_gradients(self) -> Tensor | None:
        """``(B, ...)``: each image's gradient at the layer, where it is the same all along the paths; else ``None``."""
        if not (self.from_points and self.linear_score):
            return None
        gradients: list[Tensor] = []

        def one(chunk: slice) -> None:
            rows = torch.arange(chunk.start, chunk.stop, device=self.inputs.device)
            with torch.enable_grad():
                leaf, output = self.cut.from_points(
                    self.activation[chunk], self.host_image, *rows_of(self.others, chunk)
                )
                gradient = gradient_at(leaf, self.score(output, rows)) if is_linear(output, leaf) else None
            if gradient is None:  # at the first chunk as a rule; at a later one the model takes another way with it
                raise _NotLinear
            gradients.append(gradient)

        try:
            self.point_chunks.run(len(self.inputs), points_at_once(self.activation), one)
        except _NotLinear:
            return None
        return torch.cat(gradients)

    def _linear_maps(self, gradients: Tensor, image: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor] | None:
        """What :meth:`maps` gives, from one product for each pair of an image and a baseline that is drawn.

        ``None`` where the products are not the differences of the scores: then the part behind the layer is linear at
        the images, and takes another way between them and the baselines.
        """
        count = 1 if self.baseline_activation is None else len(self.baseline_activation)
        pairs, drawn = torch.unique(image * count + baseline.clamp(min=0) % count, return_inverse=True)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []

        def one(chunk: slice) -> None:
            rows = pairs[chunk] // count
            gradient, difference = gradients[rows], self._difference(rows, pairs[chunk] % count)
            total = (gradient * difference).flatten(1).sum(1)
            parts.append((*self._weigh(gradient, difference), total))

        self.point_chunks.run(len(pairs), points_at_once(self.activation), one)
        maps, off_grid, totals = (torch.cat(values) for values in zip(*parts, strict=True))
        if self.baseline_output is not None:
            rows = pairs // count
            score, other = self.score(self.output[rows], rows), self.score(self.baseline_output[pairs % count], rows)
            rounding = 4 * resolution(self.activation, self.output) * torch.maximum(score.abs(), other.abs())
            allowed = torch.maximum(_TOLERANCE * (score - other).abs().max(), rounding)
            if bool(((totals - (score - other)).abs() > allowed).any()):
                return None
        return maps[drawn], off_grid[drawn]

    def _points(self, rows: Tensor, columns: Tensor, place: Tensor, noise: Tensor | None, difference: Tensor) -> Tensor:
        """The perturbed activations or images of a chunk of draws; ``difference`` is that of their activations."""
        values = self.activation if self.from_points else self.inputs
        origin = self.baseline_activation if self.from_points else self.baseline_inputs
        # Points are the largest tensors here, and each pass over them takes its time: hence in place.
        if origin is None:
            points = values[rows].float()
        else:
            points = origin[columns].float()
            if not self.from_points:
                difference = values[rows].float() - points
            points.addcmul_(difference, place.view(-1, *[1] * (points.ndim - 1)))
        if noise is not None:
            points += self.perturbation.noise * self._deviation(values)[rows] * noise
        if self.from_points:
            return points
        if not self.inputs.is_floating_point():  # images of whole numbers, which the model itself normalises
            limits = torch.iinfo(self.inputs.dtype)
            points = points.round().clamp(limits.min, limits.max)
        return points.to(self.inputs.dtype)

    def _difference(self, rows: Tensor, columns: Tensor) -> Tensor:
        difference = self.activation[rows].float()
        if self.baseline_activation is not None:
            difference -= self.baseline_activation[columns]
        return difference

    def _deviation(self, values: Tensor) -> Tensor:
        """The standard deviation over positions, for each image and channel, ready to be broadcast."""
        values = values.float()
        if not self.from_points or not self.layout.channels_last:
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
        return sample_noise(base.shape[1:], images, samples, self.seed).to(base.device)

    def _weigh(self, gradient: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gradients and differences into signed maps ``(n, h, w)`` and off-grid attribution ``(n,)``."""
        elementwise = self.perturbation.weighting == "elementwise"
        if not elementwise:
            weights, placed = self.layout.to_grid(gradient), self.layout.to_grid(difference)
            maps = (weights.flatten(2).mean(2).view(*weights.shape[:2], *[1] * len(self.layout.grid)) * placed).sum(1)
            if self.layout.covers_all:
                return maps, maps.new_zeros(len(maps))
        product = difference.mul_(gradient)  # in place: nothing needs the differences any more
        on_grid = self.layout.to_grid(product).sum(1)
        if self.layout.covers_all:
            return on_grid, on_grid.new_zeros(len(on_grid))
        return on_grid if elementwise else maps, product.flatten(1).sum(1) - on_grid.flatten(1).sum(1)


def _joined(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
    """The rows of two sets of other inputs, one below the other."""
    return tuple(torch.cat([a, b]) if isinstance(a, Tensor) else a for a, b in zip(first, second, strict=True))
