"""Running a model up to a layer and from it: capture its activation, or put points in its place.

Nothing before the layer ever needs a gradient, so gradients are switched on *by the hook at the layer*, where the
activation becomes a leaf. Everything that is hooked here is unhooked by a context manager.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.precision import resolution
from egcam_lightning.explain.sharding import spread_like, whole

Forward = Callable[..., Any]

Result = TypeVar("Result")


def attempt(trial: Callable[[], Result]) -> Result | None:
    """What a trial gives; ``None`` where the model refuses it, in whatever way: models raise errors of their own.

    Memory that runs out says nothing about the model, and is raised.
    """
    try:
        return trial()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of a layer's output: itself, or the first one in a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """The same output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(k for k, value in output.items() if isinstance(value, Tensor))
        if not isinstance(output, MutableMapping):
            return {**output, key: tensor}
        replaced = copy(output)  # not built anew: a defaultdict, and others of their own, take more than their items
        replaced[key] = tensor
        return replaced
    position = next(i for i, value in enumerate(output) if isinstance(value, Tensor))
    values = [*output[:position], tensor, *output[position + 1 :]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


def can_be_hooked(module: nn.Module) -> bool:
    """Whether Python sees the calls of a module. Those of a scripted one, and of its parts, happen in C++."""
    return not isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


@contextmanager
def hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Run a forward hook on ``module`` while inside."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class SplitModel:
    """A layer of a model, and the ways to run the model around it.

    Whether the layer really *is* a cut of the network (nothing bypasses it) is what :meth:`holds` finds out.

    Args:
        module: the target layer.
        name: its name, for messages.
        forward: from images, and whatever else the model takes, to scores' raw material, the logits; it must call
            ``module`` exactly once.
        axis: the dimension of the layer's output that has a row per image. Where it is not the first, as in a sequence
            ``(tokens, images, channels)``, it is put first in all that is captured and given back.

    """

    def __init__(self, module: nn.Module, name: str, forward: Forward, axis: int = 0) -> None:
        self.module = module
        self.name = name
        self.axis = axis
        self.forward = forward
        # Some models compute their backbone under their own `torch.no_grad`, and leave it switched off behind the
        # layer unless it was on around the whole model. Found out at the first run.
        self._grad_around = False

    def capture(self, images: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        """Run the model without gradients, on ``(n, C, H, W)`` images and ``others``, the rest of its inputs.

        Returns:
            The activation at the layer, images first, else in its own layout and precision, cloned since an in-place
            operation behind the layer would change it; and the model's output.

        Raises:
            ValueError: where one forward pass does not call the layer exactly once.

        """
        (activation,), output = capture([self], images, *others)
        return activation, output

    def from_points(self, points: Tensor, host_image: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        """Run only the part behind the layer, on a batch of points.

        One *host* image goes through the model, and the layer's hook returns the points instead of its own output:
        everything before the layer has cost one image.

        Args:
            points: ``(n, ...)`` activations, as :meth:`capture` gives them.
            host_image: ``(1, C, H, W)``, any image.
            *others: the rest of the model's inputs, with a row a point.

        Returns:
            The leaf, equal to ``points``, and the model's output for it.

        """
        leaf = points.detach().float()

        return self._run((host_image, *others), lambda output: (leaf.requires_grad_(), self._in_place_of(output, leaf)))

    def from_images(self, images: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        """Run the whole model on images and the rest of its inputs, recording from the layer on.

        Returns:
            The activation at the layer as a leaf, and the model's output.

        """

        def cut(output: Any) -> tuple[Tensor, Any]:
            tensor = first_tensor(output)
            assert tensor is not None
            leaf = self._rows_first(whole(tensor)).detach().float().clone().requires_grad_()
            return leaf, self._in_place_of(output, leaf)

        return self._run((images, *others), cut)

    def holds(
        self,
        activation: Tensor,
        output: Tensor,
        host_image: Tensor,
        replay: Callable[[], Tensor] | None = None,
        tolerance: float = 1e-4,
    ) -> bool:
        """Whether the layer is a cut: whether the model's output follows from the activation alone.

        Args:
            activation: ``(n, ...)``, captured at the layer.
            output: the model's own output for the same images.
            host_image: ``(1, C, H, W)``, an image that is none of them.
            replay: runs the model from ``activation`` in its own way, such as in chunks; ``None``: all at once.
            tolerance: largest difference, in standard deviations of the output over the images.

        Returns:
            ``False`` too where the test says nothing, because the output hardly varies over the images, and where the
            model cannot be run so.

        """
        reference = output.detach().float().flatten(1) if output.ndim > 1 else output.detach().float()[:, None]
        if len(reference) < 2:
            return False
        # One question to the device, not three. NaN and infinity come through to the magnitude.
        scale, magnitude = torch.stack([reference.std(0).max(), reference.abs().max()]).tolist()
        if not math.isfinite(magnitude) or scale <= 1e-6 * magnitude or scale == 0:
            return False
        # Nothing agrees to more digits than it was computed with, whatever the logits are converted to at the end; but
        # a bypass moves the output by about one deviation, and must show even there.
        eps = resolution(activation, output)
        tolerance = max(tolerance, min(4 * eps * magnitude / scale, 0.25))
        with torch.no_grad():
            # A model that remembers its batch size, or checks shapes, refuses: no cut for our purpose.
            replayed = attempt(replay or (lambda: self.from_points(activation, host_image)[1]))
        if not isinstance(replayed, Tensor) or replayed.shape != output.shape:
            return False
        return bool((replayed.float().reshape(reference.shape) - reference).abs().max() <= tolerance * scale)

    def recorded_in(self, seen: list[Tensor]) -> AbstractContextManager[None]:
        """While inside, each call of the layer adds a copy of its activation to ``seen``."""

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                raise ValueError(f"The layer {self.name!r} returns no tensor, but {type(output).__name__}.")
            seen.append(self._rows_first(whole(tensor)).detach().clone())

        return hooked(self.module, hook)

    def check_calls(self, calls: int) -> None:
        """Insist on one call of the layer in a forward pass."""
        if calls != 1:
            raise ValueError(
                f"Expected one forward pass to call the layer {self.name!r} once, but it was called {calls} times. "
                "Pass a `target_layer` that the model calls once, such as the block around it; where the model itself "
                "runs several copies of an image (test-time augmentation), a `forward_fn` that runs its network once."
            )

    def _rows_first(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(self.axis, 0) if self.axis else tensor

    def _in_place_of(self, output: Any, leaf: Tensor) -> Any:
        """The layer's output with the leaf in it, in the layer's own layout and precision."""
        tensor = first_tensor(output)
        assert tensor is not None
        # A copy, because an in-place operation on a leaf is an error. `.to` copies only when the type changes.
        if self.axis:
            copied = leaf.movedim(0, self.axis).clone(memory_format=torch.contiguous_format)
        else:
            copied = leaf.clone() if tensor.dtype == leaf.dtype else leaf
        return _with_first_tensor(output, spread_like(copied.to(tensor.dtype), tensor))

    def _run(self, inputs: tuple[Any, ...], at_layer: Callable[[Any], tuple[Tensor, Any]]) -> tuple[Tensor, Tensor]:
        wanted = torch.is_grad_enabled()
        while True:
            leaves: list[Tensor] = []

            def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                torch.set_grad_enabled(wanted)
                leaf, replaced = at_layer(output)
                leaves.append(leaf)  # noqa: B023  (called before the next turn of the loop)
                return replaced

            with torch.set_grad_enabled(wanted and self._grad_around), hooked(self.module, hook):
                output = self.forward(*inputs)
            self.check_calls(len(leaves))
            recorded = not wanted or (isinstance(output, Tensor) and output.requires_grad)
            if recorded or self._grad_around:
                return leaves[0], output
            self._grad_around = True


def capture(splits: Sequence[SplitModel], images: Tensor, *others: Any) -> tuple[list[Tensor], Tensor]:
    """Run a model once, and take the activations at several of its layers: see :meth:`SplitModel.capture`.

    Args:
        splits: the same model, split at each of the layers.
        images: ``(n, C, H, W)``.
        *others: the rest of the model's inputs.

    Returns:
        One activation a layer, and the model's output.

    """
    seen: list[list[Tensor]] = [[] for _ in splits]
    with torch.no_grad(), ExitStack() as stack:
        for split, activations in zip(splits, seen, strict=True):
            stack.enter_context(split.recorded_in(activations))
        output = splits[0].forward(images, *others)
    for split, activations in zip(splits, seen, strict=True):
        split.check_calls(len(activations))
    return [activations[0] for activations in seen], output


def varies(tensor: Tensor) -> bool:
    """Whether the rows differ at all; NaN, which differs from itself, does not count."""
    return bool((tensor.nan_to_num() != tensor[:1].nan_to_num()).any())


def host_image_like(images: Tensor, seed: int = 0) -> Tensor:
    """``(1, C, H, W)``: a noise image that is none of ``images``, of their type and range."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(images.shape[1:], generator=generator).to(images.device)
    sample = images.detach().float()
    low, high = sample.amin(), sample.amax()
    high = torch.where(high > low, high, low + 1)  # of images of one colour, too, it must be none
    return (low + (high - low) * noise)[None].to(images.dtype)


def smaller(host_image: Tensor) -> list[Tensor]:
    """Carriers ``(1, C, *size)`` cut out of the middle of one, the smallest first; none where it is small itself.

    None on a device either: where a model cannot do with another size it may read past the end of a table, and behind
    such an error on a device no later pass of the process works, the training's included. On a CPU it can be caught.
    """
    if host_image.device.type != "cpu":
        return []
    size = host_image.shape[2:]
    sizes = [[min(side, 32) for side in size], [min(side, max(32, 32 * -(-side // 128))) for side in size]]
    host_images: list[Tensor] = []
    for sides in sizes:
        part = host_image
        for axis, side in enumerate(sides, start=2):
            part = part.narrow(axis, (part.shape[axis] - side) // 2, side)
        if part.shape not in [other.shape for other in (host_image, *host_images)]:
            host_images.append(part.contiguous())
    return host_images
