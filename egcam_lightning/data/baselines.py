"""The baselines of a fit: training images, chosen once, the same in every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.data.batch import Key, find_images, get
from egcam_lightning.data.loaders import CannotRead, SampleReader
from egcam_lightning.data.probe import Guard, Probe, to_storage
from egcam_lightning.data.reservoir import BaselineReservoir, split_sizes
from egcam_lightning.seeding import generator_for
from egcam_lightning.state_values import typed

if TYPE_CHECKING:
    from egcam_lightning.training.process_group import ProcessGroup

# Data without an end have no epoch to sample: so many images are enough for a sample that nobody can tell apart.
_ENDLESS = 10_000


class Baselines:
    """Training images, by generation: ``0`` evenly spaced in the data, ``1`` a uniform sample of the first epoch.

    Both are of what the training loader delivers. The first serve until the second are complete. Where training data
    cannot be indexed, the sample so far serves instead, as a generation of its own each time (a negative number), since
    drift is never taken across a change. A sample that a checkpoint does not hold is drawn anew, from a whole epoch,
    and is the next generation.

    Args:
        size: how many.
        seed: seeds the sample.
        limit: the sample is complete after so many images; ``None``: with the first epoch.

    """

    def __init__(self, size: int, seed: int, limit: int | None = None) -> None:
        self._size = size
        self._seed = seed
        self._limit = limit
        self._warned_size = False
        self._rank = 0
        self._world = 1
        self._reservoir = BaselineReservoir(size, seed)
        self._initial: Tensor | None = None
        self._chosen: Tensor | None = None
        self._generation = 0  # of the last complete sample
        self._resumed_world: int | None = None  # how many processes saw what a checkpoint's unfinished sample is of
        self.open = True

    def collect(
        self,
        reader: SampleReader,
        loader: Any,
        input_key: Key | None,
        to_model: Callable[[Any], Any],
        guard: Guard,
    ) -> Tensor | None:
        """Collect the first generation, where it is needed, without moving a loader, a data set or a generator.

        Args:
            reader: reads samples of the loader.
            loader: the training loader.
            input_key: where images are in a batch.
            to_model: brings a batch to the model, as training batches are.
            guard: does what may fail.

        Returns:
            ``(R, C, H, W)`` on the CPU, rounded to their storage type; ``None`` where the data cannot be indexed.

        """

        def read() -> Any:
            try:
                found = reader.evenly_spaced(loader, self._size)
            except CannotRead as error:
                rank_zero_info(f"{error} Baselines are sampled from the training batches instead.")
                return None
            return None if found is None else to_model(found[0])

        batch = guard("reading training images", read) if self._chosen is None else None
        return None if batch is None else to_storage(get(batch, find_images(batch, input_key)).detach()).cpu()

    def prepare(self, process_group: ProcessGroup, collected: Tensor | None, *, endless: bool = False) -> None:
        """Begin a fit.

        Args:
            process_group: its processes.
            collected: the first generation, from :meth:`collect`.
            endless: whether the training data have no end, and so no epoch.

        """
        self._rank, self._world = process_group.rank, process_group.world
        if endless and self._limit is None:
            self._limit = _ENDLESS
        if self._chosen is not None:
            return
        self._initial = collected
        if self._resumed_world is not None and max(self._resumed_world, process_group.world) > 1:
            # A checkpoint holds what the first process saw; what the others saw is lost.
            rank_zero_info(
                "The checkpoint was written before the sample of training images was complete, and holds one process's "
                "part of it. The sample is drawn anew from the next whole epoch."
            )
            self._renew()
        if self._reservoir.seen == 0:
            self._renew()
        self._resumed_world = None

    def wants(self, batch_idx: int) -> bool:
        """Whether a training batch should pass by. A sample of an epoch begins with the epoch."""
        return self.open and (batch_idx == 0 or self._reservoir.seen > 0 or self._limit is not None)

    def update(self, images: Tensor) -> None:
        """Let a training batch pass by."""
        self._reservoir.update(images.detach())
        if self._limit is not None and self._reservoir.seen >= self._limit:
            self.open = False

    def end_epoch(self) -> None:
        """The first epoch is over: the sample is complete."""
        if self._reservoir.seen:
            self.open = False

    def current(self, process_group: ProcessGroup, probe: Probe, device: torch.device) -> tuple[Tensor, int] | None:
        """The baselines to use now, ``(R, C, H, W)`` as the model takes the probe, and their generation.

        Returns:
            ``None`` where there are none yet.

        """
        if self._chosen is None and process_group.all(not self.open):
            self._chosen, _ = self._merged(process_group, device)
            self._generation += 1
            self._reservoir = BaselineReservoir(1)  # its images are no longer needed
            self._initial = None
        images, generation = self._chosen, self._generation
        if images is None:
            images, generation = self._initial, 0
        if images is None:
            images, seen = self._merged(process_group, device)
            generation = -seen
        if images is None:
            return None
        fitted = images
        return process_group.run_or_raise_everywhere(
            lambda: self._fitted(fitted, probe).to(device, probe.dtype)
        ), generation

    @property
    def images(self) -> Tensor | None:
        """``(R, C, H, W)``, in their storage type: the sample, or the first generation before it is complete."""
        return self._initial if self._chosen is None else self._chosen

    def state_dict(self, *, save_images: bool = True) -> dict[str, Any]:
        """What a resumed fit goes on from.

        Args:
            save_images: whether it holds the images, the larger part of it.

        """
        unfinished = save_images and self._chosen is None
        return {
            "generation": self._generation,
            "open": self.open,
            "chosen": self._chosen if save_images else None,
            "reservoir": self._reservoir.state_dict() if unfinished else None,
            # Before a fit has begun, the sample is still that of the processes of the last one.
            "world": self._world if self._resumed_world is None else self._resumed_world,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RuntimeError: where the state is damaged; nothing of it
                is taken then.

        """
        generation, world, was_open = typed(state, "generation", int), typed(state, "world", int), state["open"]
        chosen, sample, reservoir = state["chosen"], state["reservoir"], self._reservoir
        if not isinstance(was_open, bool):
            raise TypeError(f"'open' is {was_open!r}, expected True or False")
        if chosen is not None and (chosen.ndim not in (4, 5) or 0 in chosen.shape):
            raise ValueError(f"{tuple(chosen.shape)} is no shape of images")
        if sample is not None:
            reservoir = BaselineReservoir(self._size, self._seed)
            reservoir.load_state_dict(sample)
        self._generation, self._chosen, self._reservoir = generation, chosen, reservoir
        self._resumed_world = None if sample is None else world
        self.open = was_open if sample is not None else chosen is None

    def forget(self) -> None:
        """Let go of images that the model can no longer take, and sample anew."""
        self._chosen = None
        self._renew()

    def _renew(self) -> None:
        """Begin a sample; each process samples its own stream, in its own way."""
        seed = int(generator_for(self._seed, self._rank).initial_seed())
        exact = self._initial is not None and self._initial.dtype == torch.float32
        self._reservoir = BaselineReservoir(self._size, seed, torch.float32 if exact else torch.float16)
        self.open = True

    def _merged(self, process_group: ProcessGroup, device: torch.device) -> tuple[Tensor | None, int]:
        """One uniform sample of what all processes saw, and how many images that was; only chosen rows travel."""
        reservoir = self._reservoir
        counts = reservoir.seen if process_group.shares.hands_in else 0  # others have seen the same images
        seen = [int(count) for count in process_group.all_gather(torch.tensor(counts, device=device))]
        if sum(seen) == 0:
            return None, 0
        # The split is drawn from the shared seed, so that nobody has to tell it to the others.
        sizes = split_sizes(seen, self._size, generator_for(self._seed, 3))
        source = next(rank for rank, count in enumerate(seen) if count)  # all take its size and type
        generator = generator_for(self._seed, 2, process_group.rank)
        empty: Tensor = process_group.broadcast(
            reservoir.choose(0, generator).cpu() if process_group.rank == source else None, source
        )

        def choose() -> Tensor:
            if sizes[process_group.rank] == 0:
                return empty.to(device)
            rows = reservoir.choose(sizes[process_group.rank], generator).to(device)
            if rows.shape[2:] != empty.shape[2:]:
                rows = _resized(rows, empty.shape[2:])
            return rows.to(empty.dtype)

        rows = process_group.run_or_raise_everywhere(choose)
        start = sum(sizes[: process_group.rank])
        return process_group.assemble(rows, torch.arange(start, start + len(rows)), sum(sizes)), sum(seen)

    def _fitted(self, images: Tensor, probe: Probe) -> Tensor:
        """Training images at the probe's size."""
        size = probe.images.shape[2:]
        if images.shape[2:] == size:
            return images
        if not self._warned_size:
            self._warned_size = True
            rank_zero_warn(
                f"Training images are {tuple(images.shape[2:])} and validation images {tuple(size)}: baselines are "
                "resized to the latter."
            )
        return _resized(images, size)


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(R, C, *size)``, of the same type."""
    mode = "trilinear" if len(size) == 3 else "bilinear"
    resized = interpolate(images.float(), size=size, mode=mode, align_corners=False)
    return (resized if images.dtype.is_floating_point else resized.round()).to(images.dtype)
