"""Whether a layer is a cut of the network, so that paths can run between activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from egcam_lightning.explain.captured import Captured, replay, rows_of
from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.explain.split_model import SplitModel, attempt, host_image_like, smaller, varies


@dataclass(frozen=True, eq=False)
class CutTest:
    """What the test of a layer found.

    Attributes:
        host_image: ``(1, C, H, W)``, an image with which the layer is a cut, see :meth:`SplitModel.from_points`;
            ``None`` where it is none with any.
        tells_images_apart: whether the model's output depends on the image at all: the test says nothing otherwise.

    """

    host_image: Tensor | None
    tells_images_apart: bool

    @property
    def is_cut(self) -> bool:
        """Whether the layer is a cut of the network."""
        return self.host_image is not None


def find_cut(
    model: nn.Module,
    split: SplitModel,
    images: Captured,
    baselines: Captured | None,
    image_chunks: Chunks,
    point_chunks: Chunks,
    seed: int,
) -> CutTest:
    """Find out whether the layer is a cut of the network, as far as images and their baselines tell.

    Even a host image much smaller than the images will often do, and what comes before the layer then costs next to
    nothing.

    Args:
        model: the model, whose state each trial leaves as it was.
        split: the model, split at the layer.
        images: the images that are explained.
        baselines: their baselines.
        image_chunks: how many images go through the whole model at once.
        point_chunks: how many points go through the part behind the layer at once.
        seed: what the global generators are seeded with.

    """
    apart = True
    host = host_image_like(images.inputs)
    for host_image in [*smaller(host), host]:
        with isolated(model, seed=seed):  # a model may settle on the size of the images that it has seen
            shown = _telling(split, images, baselines, image_chunks)
            apart = varies(shown.output)
            if _holds(split, shown, host_image, point_chunks):
                return CutTest(host_image, apart)
    return CutTest(None, apart)


def _telling(split: SplitModel, images: Captured, baselines: Captured | None, chunks: Chunks) -> Captured:
    """The images; where these are few, with some baselines, and where the output does not vary, with noise."""
    shown = images
    if len(images) < 4 and baselines is not None:
        shown = images.joined(baselines.first(4))
    if not varies(shown.output):
        noise = host_image_like(images.inputs, seed=1)
        other = attempt(lambda: Captured.of(split, noise, chunks, rows_of(images.others, slice(1))))
        shown = shown if other is None else shown.joined(other)
    return shown


def _holds(split: SplitModel, shown: Captured, host_image: Tensor, chunks: Chunks) -> bool:
    return split.holds(
        shown.activation,
        shown.output,
        host_image,
        replay=lambda: replay(split, shown.activation, host_image, chunks, shown.others, shown.points_at_once),
    )
