"""Images as a layer sees them: captured once, and run from there any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.explain.chunking import Chunks, images_at_once, points_at_once
from egcam_lightning.explain.scores import check_rows
from egcam_lightning.explain.split_model import SplitModel, capture


def rows_of(others: Sequence[Any], rows: Tensor | slice) -> tuple[Any, ...]:
    """Rows of the model's other inputs; what is no tensor is the same for all."""
    return tuple(other[rows] if isinstance(other, Tensor) else other for other in others)


@dataclass(frozen=True, eq=False)
class Captured:
    """Images, and what the model makes of them.

    Attributes:
        inputs: ``(n, C, H, W)``, the images.
        others: the model's other inputs that they are seen with, with a row per image.
        activation: ``(n, ...)``, theirs at the layer, in its own layout.
        output: the model's output for them.

    """

    inputs: Tensor
    others: tuple[Any, ...]
    activation: Tensor
    output: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def points_at_once(self) -> int:
        """How many of their activations go through the part behind the layer at once.

        Where the model returns images, as a segmentation does, that part may be as large as all of the model, however
        small the layer's grid.
        """
        count = points_at_once(self.activation)
        return min(count, images_at_once(self.inputs)) if self.output.ndim >= self.inputs.ndim else count

    @classmethod
    def of(cls, split: SplitModel, images: Tensor, chunks: Chunks, others: Sequence[Any] = ()) -> Captured:
        """Run the model on any number of images and its other inputs."""
        return capture_at([split], images, chunks, others)[0]

    def first(self, count: int) -> Captured:
        """The first few of them."""
        part = slice(count)
        return Captured(self.inputs[part], rows_of(self.others, part), self.activation[part], self.output[part])

    def joined(self, more: Captured) -> Captured:
        """These and more of them, one below the other."""
        others = zip(self.others, more.others, strict=True)
        return Captured(
            torch.cat([self.inputs, more.inputs]),
            tuple(torch.cat([a, b]) if isinstance(a, Tensor) else a for a, b in others),
            torch.cat([self.activation, more.activation]),
            torch.cat([self.output, more.output]),
        )


def capture_at(
    splits: Sequence[SplitModel], images: Tensor, chunks: Chunks, others: Sequence[Any] = ()
) -> list[Captured]:
    """Run the model once on any number of images and its other inputs: what each of several layers makes of them."""
    activations: list[list[Tensor]] = []
    outputs: list[Tensor] = []

    def one(chunk: slice) -> None:
        found, output = capture(splits, images[chunk], *rows_of(others, chunk))
        check_rows(output, len(images[chunk]))
        activations.append(found)
        outputs.append(output)

    chunks.run(len(images), images_at_once(images), one)
    output = torch.cat(outputs)
    return [Captured(images, tuple(others), torch.cat(parts), output) for parts in zip(*activations, strict=True)]


def replay(
    split: SplitModel,
    points: Tensor,
    host_image: Tensor,
    chunks: Chunks,
    others: Sequence[Any] = (),
    at_once: int | None = None,
) -> Tensor:
    """The model's output for any number of activations ``(n, ...)`` at a layer and the model's other inputs."""
    outputs: list[Tensor] = []

    def one(chunk: slice) -> None:
        outputs.append(split.from_points(points[chunk], host_image, *rows_of(others, chunk))[1])

    chunks.run(len(points), at_once or points_at_once(points), one)
    return torch.cat(outputs)
