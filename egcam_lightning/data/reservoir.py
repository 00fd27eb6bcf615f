"""A uniform sample of a stream of images in constant memory: what the baselines are drawn from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

_MODES = {2: "bilinear", 3: "trilinear"}


class BaselineReservoir:
    """Keep a uniform sample of all images seen so far, without reading those that are not chosen.

    Algorithm L (Li 1994, *Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))*, ACM TOMS 20(4)): the
    place in the stream of the next image to enter is drawn ahead, so that a batch it is not in costs an integer
    comparison. The draws come from a CPU generator of its own and depend on the order of the images alone, not on how
    they are cut into batches. Nothing here waits for a device: images that enter are copied row by row on the device
    that they are on.

    What is kept is rounded before anyone can use it, so that a reservoir and its saved state hold the same values:
    ``uint8`` images stay as they are, floating ones become ``dtype``. Whether values fit ``float16`` is not looked up
    (that would wait for the device): those beyond its range, 65504, are cut off there, and 11 bits of precision are
    kept. For images in raw units, such as 16-bit counts, give ``torch.float32``.

    Args:
        size: how many images to keep.
        seed: seeds the choice.
        dtype: what floating images are stored as: ``torch.float16`` or ``torch.float32``.

    Raises:
        ValueError: for a size below 1 or another ``dtype``.

    Example:
        >>> reservoir = BaselineReservoir(size=2)
        >>> for batch in torch.arange(12.0).view(3, 4, 1, 1, 1):
        ...     reservoir.update(batch)
        >>> reservoir.seen, len(reservoir), reservoir.images.shape
        (12, 2, torch.Size([2, 1, 1, 1]))

    """

    def __init__(self, size: int = 32, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: a reservoir keeps at least 1 image.")
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"dtype is {dtype}: give torch.float16 or, for exact or large values, torch.float32.")
        self.size = size
        self.dtype = dtype
        self.seen = 0
        self._next = 0  # index in the stream of the next image to enter
        self._log_w = 0.0  # log of the largest of the `size` smallest of `seen` uniform numbers
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._storage: Tensor | None = None
        self._resized = False

    def __len__(self) -> int:
        return min(self.seen, self.size)

    @property
    def images(self) -> Tensor:
        """``(n, C, H, W)``: the images held, float32 or uint8, in no particular order. Clone them to keep them.

        Raises:
            ValueError: where no image has been seen.

        """
        rows = self._rows()
        return rows if rows.dtype == torch.uint8 else rows.float()

    def update(self, images: Tensor) -> None:
        """Let the next images of the stream pass by.

        Args:
            images: ``(B, C, H, W)`` (or ``(B, C, D, H, W)``), floating or uint8, on any device. Images of another size
                than the first are interpolated to the first's.

        Raises:
            TypeError: for neither floating nor uint8 images, or for another of the two than before.
            ValueError: for another number of dimensions or channels.

        """
        self._check(images)
        start, self.seen = self.seen, self.seen + images.shape[0]
        rows: dict[int, int] = {}  # slot -> row; where two enter at one slot the later stays
        while self._next < self.seen:
            slot = self._next
            if slot >= self.size:
                slot = int(self._uniform() * self.size)
            rows[slot] = self._next - start
            self._advance()
        if rows:
            self._write(rows, images)

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw a uniform subset of the images held, as they are stored.

        With the counts of :func:`split_sizes` the subsets of several reservoirs make one uniform sample.

        Args:
            count: how many, at most ``len(self)``.
            generator: a CPU generator.

        Returns:
            ``(count, C, H, W)``.

        Raises:
            ValueError: where fewer than ``count`` images are held.

        """
        if not 0 <= count <= len(self):
            raise ValueError(f"cannot choose {count} images: the reservoir holds {len(self)}.")
        rows = self._rows()
        return rows[torch.randperm(len(self), generator=generator)[:count].to(rows.device)]

    def merge(self, others: Sequence[BaselineReservoir]) -> BaselineReservoir:
        """Make one uniform sample of what this reservoir and all others saw.

        How many images each gives is drawn as if all streams had been one (:func:`split_sizes`); only those are read.
        The result stands on its own and can be updated further. The draws follow from this reservoir's generator,
        which stays as it is.

        Args:
            others: reservoirs of the same size, each of a stream of its own and seeded differently (with one seed all
                would choose the same places of their streams).

        Returns:
            A new reservoir; its images lie on the device of the first reservoir that gives any.

        Raises:
            TypeError: for a mixture of floating and uint8 images.
            ValueError: for reservoirs of another size, or images with another number of channels.

        """
        parts = [self, *others]
        if sizes := {part.size for part in parts} - {self.size}:
            raise ValueError(f"only reservoirs of one size can be merged: this one keeps {self.size}, others {sizes}.")
        merged = BaselineReservoir(self.size, dtype=self.dtype)
        merged._generator.set_state(self._generator.get_state())
        counts = split_sizes([part.seen for part in parts], self.size, merged._generator)
        for part, count in zip(parts, counts, strict=True):
            if count:
                chosen = part.choose(count, merged._generator)
                merged._check(chosen)
                merged._write({merged.seen + row: row for row in range(count)}, chosen)
                merged.seen += count
        merged.seen = merged._next = sum(part.seen for part in parts)
        if merged.seen >= self.size:
            # The `size`-th smallest of `seen` uniform numbers, which stands for how hard it has become to enter.
            bits = int(torch.randint(2**62, (1,), generator=merged._generator))
            w = np.random.default_rng(bits).beta(self.size, merged.seen - self.size + 1)
            merged._log_w = float(np.log(w))
            merged._next += merged._skip()
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain tensors (on the CPU) and numbers: the images held, ``(n, C, H, W)``, and the choice."""
        return {
            "size": self.size,
            "seen": self.seen,
            "next": self._next,
            "log_w": self._log_w,
            "generator": self._generator.get_state(),
            "images": None if self._storage is None else self._storage[: len(self)].detach().clone().cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the reservoir that gave ``state`` would have gone on.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ValueError: where ``state`` is none of a reservoir, or of one of another size.

        """
        if missing := {"size", "seen", "next", "log_w", "generator", "images"} - set(state):
            raise ValueError(f"this is not the state of a reservoir: {sorted(missing)} are missing.")
        if state["size"] != self.size:
            raise ValueError(
                f"the state is that of a reservoir of {state['size']} images, this one keeps {self.size}: "
                f"make it with size={state['size']} to go on, or start afresh without the state."
            )
        images = state["images"]
        if (0 if images is None else len(images)) != min(state["seen"], self.size):
            raise ValueError(f"the state is damaged: {state['seen']} images were seen, but not as many are there.")
        self.seen, self._next, self._log_w = int(state["seen"]), int(state["next"]), float(state["log_w"])
        self._generator.set_state(state["generator"].cpu())
        self._storage = None
        if images is not None:
            if images.is_floating_point():
                self.dtype = images.dtype  # what was kept exactly stays exact
            self._write(dict(enumerate(range(len(images)))), images)

    def _uniform(self) -> float:
        """One draw from [0, 1)."""
        return float(torch.rand(1, dtype=torch.float64, device="cpu", generator=self._generator))

    def _skip(self) -> int:
        """How many images pass before the next one enters: geometric, with probability ``w``."""
        w = math.exp(self._log_w)
        return math.floor(math.log(1 - self._uniform()) / math.log1p(-w)) if w < 1 else 0

    def _advance(self) -> None:
        """Draw the place of the next image to enter, after one has."""
        self._next += 1
        if self._next >= self.size:
            self._log_w += math.log(1 - self._uniform()) / self.size
            self._next += self._skip()

    def _rows(self) -> Tensor:
        if self._storage is None:
            raise ValueError("the reservoir is empty: update it with images first.")
        return self._storage[: len(self)]

    def _check(self, images: Tensor) -> None:
        """Refuse what cannot be stored. Reads the shape and type alone."""
        shape, dtype = images.shape, images.dtype
        if len(shape) - 2 not in _MODES:
            raise ValueError(f"images have shape {tuple(shape)}: expected (B, C, H, W) or (B, C, D, H, W).")
        if not (dtype == torch.uint8 or dtype.is_floating_point):
            raise TypeError(f"images are {dtype}: expected floating or uint8; write images.float().")
        if self._storage is None:
            return
        kept = self._storage
        if (dtype == torch.uint8) != (kept.dtype == torch.uint8):
            raise TypeError(f"images are {dtype}, but those before were stored as {kept.dtype}: their units differ.")
        if len(shape) != kept.ndim or shape[1] != kept.shape[1]:
            raise ValueError(
                f"images have shape {tuple(shape)}, but those before had {kept.shape[1]} channels and "
                f"{kept.ndim} dimensions: one reservoir keeps one kind of image."
            )

    # Storage made in inference mode could not be written outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _write(self, rows: Mapping[int, int], images: Tensor) -> None:
        """Copy rows of ``images`` ``(B, C, H, W)`` into slots, each of ``rows`` a slot and its row."""
        images = images.detach()
        if self._storage is None:
            dtype = torch.uint8 if images.dtype == torch.uint8 else self.dtype
            self._storage = torch.empty((self.size, *images.shape[1:]), dtype=dtype, device=images.device)
        if self._storage.device != images.device:
            self._storage = self._storage.to(images.device)  # after a resume
        if images.shape[2:] != self._storage.shape[2:]:
            self._warn_resized(images.shape[2:])
        limit = torch.finfo(self.dtype).max
        for slot, row in rows.items():
            image = images[row : row + 1]
            if image.shape[2:] != self._storage.shape[2:]:
                mode = _MODES[image.ndim - 2]
                image = interpolate(image.float(), size=self._storage.shape[2:], mode=mode, align_corners=False)
                image = image.round() if self._storage.dtype == torch.uint8 else image
            if image.is_floating_point() and self._storage.dtype == torch.float16:
                image = image.clamp(-limit, limit)
            self._storage[slot].copy_(image[0])

    def _warn_resized(self, size: Sequence[int]) -> None:
        if self._resized or self._storage is None:
            return
        self._resized = True
        warnings.warn(
            f"Training images come in several sizes: baselines of size {tuple(size)} are resized to the first one's, "
            f"{tuple(self._storage.shape[2:])}.",
            stacklevel=4,
        )


def split_sizes(seen: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
    """Draw how many images of a joint uniform sample come from each of several streams.

    Multivariate hypergeometric: ``size`` draws without replacement from all images that all streams had. No stream
    gives more than it had, nor more than ``size``. With the same generator every process draws the same split, so
    that only the chosen images need to travel between them.

    Args:
        seen: how many images each stream had.
        size: how many images to choose in all.
        generator: a CPU generator.

    Returns:
        One count a stream; their sum is ``min(size, sum(seen))``.

    Raises:
        ValueError: for a negative count.

    Example:
        >>> split_sizes([5, 0, 2], 10, torch.Generator())
        [5, 0, 2]

    """
    if size < 0 or any(count < 0 for count in seen):
        raise ValueError(f"counts cannot be negative: seen={list(seen)}, size={size}.")
    left = np.array(seen, dtype=np.int64)
    for _ in range(min(size, int(left.sum()))):
        ticket = int(torch.randint(int(left.sum()), (1,), device="cpu", generator=generator))
        left[np.searchsorted(left.cumsum(), ticket, side="right")] -= 1
    return [int(count) for count in np.array(seen, dtype=np.int64) - left]
