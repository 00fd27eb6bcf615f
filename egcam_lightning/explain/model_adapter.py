"""The model as it is explained: from images, and whatever else it takes, to logits, wherever its output has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.captured import rows_of
from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.explain.outputs import select_output
from egcam_lightning.explain.scores import check_rows
from egcam_lightning.explain.sharding import whole
from egcam_lightning.explain.split_model import attempt, host_image_like, varies

# Of the output's deviation over images. Rounding moves it by a thousandth of that, a misread image by about all of it.
_TOLERANCE = 0.01

# Of the same: what an image's company moves it by where it matters is about all of it, too.
_COMPANY = 0.05


_MIXES = (
    "The model's output for an image depends on the other images of its batch, as behind a BatchNorm without running "
    "statistics."
)
_ALONE = (
    "Each image is explained alone, as in a batch of one, which takes longer, and is not what the model says of it in "
    "a batch."
)
_INSTEAD = "Write `track_running_stats=True`, or use a normalisation of each image such as nn.GroupNorm."


class ModelAdapter:
    """A model, how it is called, and where its logits are.

    Args:
        model: the model.
        forward_fn: ``forward_fn(model, images, *others)`` to call it; ``None`` for ``model(images, *others)``.
        output_key: key, attribute or position of the logits; ``None`` finds the usual ones.

    Attributes:
        mixes_images: whether the output for an image depends on the other images of its batch; ``None`` as long as
            that is not known.

    """

    def __init__(
        self, model: nn.Module, forward_fn: Callable[..., Any] | None = None, output_key: str | int | None = None
    ) -> None:
        self.model = model
        self._output_key = output_key
        self._call = model if forward_fn is None else partial(forward_fn, model)
        self._channels_last = False
        self.mixes_images: bool | None = None

    def __call__(self, images: Tensor, *others: Any) -> Any:
        """The logits for images ``(n, C, H, W)`` and the model's other inputs."""
        if self._channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.logits(self._call(images, *others))

    def logits(self, output: Any) -> Any:
        """The logits in what the model has returned."""
        logits = select_output(output, self._output_key)
        if not isinstance(logits, Tensor):
            return logits
        logits = whole(logits)
        # `squeeze()` takes the images' dimension too, where there is one image and one logit.
        return (logits[None] if logits.ndim == 0 else logits).contiguous()

    def settle_format(self, images: Tensor, *others: Any) -> None:
        """Have images lie channels last in memory, which a CPU convolves faster, where it changes nothing.

        It may: a ``view`` behind a convolution raises, and operators of the model's own may misread what they get.

        Args:
            images: ``(n, C, H, W)``, a few to try it with.
            *others: the model's other inputs.

        """
        self._channels_last = False
        convolutions = sum(isinstance(module, nn.Conv2d) for module in self.model.modules())
        # A transformer has one convolution, for its patches.
        if images.ndim != 4 or images.device.type != "cpu" or convolutions < 2:
            return
        with torch.no_grad():
            expected = self(images, *others)
            if not isinstance(expected, Tensor) or expected.dtype != torch.float32 or not varies(expected):
                return
            self._channels_last = True
            with isolated(self.model):  # what a pass has moved that ends half way is put back
                output: Any = attempt(lambda: self(images, *others))
        same = isinstance(output, Tensor) and output.shape == expected.shape
        self._channels_last = same and bool((output - expected).abs().max() <= _TOLERANCE * expected.std(0).max())

    def must_take_images_alone(self, images: Tensor, others: Sequence[Any], *, seed: int = 0) -> bool:
        """Whether each image is to go through the model alone, since the model mixes the images of a batch.

        Else what is explained would change with whatever happens to go through the model beside it. Found out, and
        warned of, at the first images that tell.

        Args:
            images: ``(n, C, H, W)``; the first is used.
            others: the model's other inputs, with a row per image.
            seed: what the global generators are seeded with.

        Raises:
            ValueError: where the model takes no single image.

        """
        if self.mixes_images is None:
            given = rows_of(others, torch.zeros(2).long().to(images.device))
            if self._find_out_whether_it_mixes(images[:1].detach(), *given, seed=seed):
                try:
                    with torch.no_grad(), isolated(self.model, seed=seed):
                        self(images[:1], *rows_of(others, slice(1)))
                except (RuntimeError, ValueError) as error:
                    if is_out_of_memory(error):
                        raise
                    raise ValueError(
                        f"{_MIXES} Expected it to take one image alone, so that this can be explained, but it raised: "
                        f"{error} {_INSTEAD}"
                    ) from error
                warnings.warn(f"{_MIXES} {_ALONE} {_INSTEAD}", stacklevel=4)
        return bool(self.mixes_images)

    def _find_out_whether_it_mixes(self, image: Tensor, *others: Any, seed: int = 0) -> bool:
        """Find out whether the model mixes the images of a batch, as BatchNorm without running statistics does.

        Nothing is found out where the output does not vary over images, as in front of a head of zeros, and where the
        model cannot be run so.

        Args:
            image: ``(1, C, H, W)``, an image.
            *others: the model's other inputs, with two rows.
            seed: what the global generators are seeded with.

        Returns:
            Whether it has been found to do so.

        """

        def beside(other: Tensor) -> Tensor:
            with torch.no_grad(), isolated(self.model, seed=seed):  # the same state and random numbers for both
                output: Tensor = self(torch.cat([image, other]), *others)
            check_rows(output, 2)
            return output.detach().float().flatten(1) if output.ndim > 1 else output.detach().float()[:, None]

        noise = host_image_like(image, seed=3)
        outputs = attempt(lambda: torch.stack([beside(noise), beside(noise.amin().expand_as(noise))]))
        if outputs is None or not bool(outputs.isfinite().all()):
            return False
        scale = outputs.flatten(0, 1).std(0).max()
        if bool(scale > 1e-6 * outputs.abs().max()):
            self.mixes_images = bool((outputs[0, 0] - outputs[1, 0]).abs().max() > _COMPANY * scale)
        return bool(self.mixes_images)
