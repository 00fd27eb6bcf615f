"""The baselines of a fit: training images, chosen once, the same in every process."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.batches import Key, find_images, get
from egcam_lightning.data import evenly_spaced_batch, first_loader, to_model
from egcam_lightning.explain.draws import generator_for
from egcam_lightning.probe import Probe, to_storage
from egcam_lightning.ranks import Ranks
from egcam_lightning.reservoir import BaselineReservoir, split_sizes

# Data without an end have no epoch to sample: so many images are enough for a sample that nobody can tell apart.
_ENDLESS = 10_000


class Baselines:
    """Training images, by generation: ``0`` from evenly spaced indices, ``1`` a uniform sample of the first epoch.

    The first serve until the second are complete. Where training data cannot be indexed, the sample so far serves
    instead, as a generation of its own each time (a negative number), since drift is never taken across a change.

    Args:
        size: how many.
        seed: seeds the sample.
        limit: the sample is complete after so many images; ``None``: with the first epoch.

    """

    def __init__(self, size: int, seed: int, limit: int | None = None) -> None:
        self._size = size
        self._seed = seed
        self._limit = limit
        self._rank = 0
        self._reservoir = BaselineReservoir(size, seed)
        self._initial: Tensor | None = None
        self._chosen: Tensor | None = None
        self.open = True

    def prepare(self, trainer: Trainer, pl_module: LightningModule, input_key: Key | None) -> None:
        """Collect the first generation, without moving a loader or generator."""
        if self._chosen is not None:
            return
        if trainer.num_training_batches == float("inf") and self._limit is None:
            self._limit = _ENDLESS
        self._rank = int(trainer.global_rank)
        if self._reservoir.seen == 0:  # each process samples its own stream, in its own way
            self._reservoir = BaselineReservoir(self._size, int(generator_for(self._seed, self._rank).initial_seed()))
        found = evenly_spaced_batch(first_loader(trainer.train_dataloader), self._size)
        if found is not None:
            batch = to_model(trainer, pl_module, found[0], validating=False)
            images = get(batch, find_images(batch, input_key))
            self._initial = to_storage(images.detach()).cpu()
            if self._initial.dtype == torch.float32 and self._reservoir.seen == 0:
                self._reservoir = BaselineReservoir(self._size, self._reservoir_seed(), torch.float32)

    def update(self, images: Tensor) -> None:
        """Let a training batch pass by."""
        self._reservoir.update(images.detach())
        if self._limit is not None and self._reservoir.seen >= self._limit:
            self.open = False

    def end_epoch(self) -> None:
        """The first epoch is over: the sample is complete."""
        if self._reservoir.seen:
            self.open = False

    def current(self, ranks: Ranks, probe: Probe, device: torch.device) -> tuple[Tensor, int] | None:
        """The baselines to use now, ``(R, C, H, W)`` as the model takes the probe, and their generation.

        Returns:
            ``None`` where there are none yet.

        """
        complete = ranks.all(not self.open)
        if self._chosen is None and complete:
            self._chosen = self._merged(ranks, device)
            self._reservoir = BaselineReservoir(1)  # its images are no longer needed
            self._initial = None
            self.open = False
        if self._chosen is not None:
            images, generation = self._chosen, 1
        elif self._initial is not None:
            images, generation = self._initial, 0
        elif self._reservoir.seen:
            images, generation = self._reservoir.images, -self._reservoir.seen
        else:
            return None
        return self._fitted(images, probe).to(device, probe.dtype), generation

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit goes on from."""
        return {
            "open": self.open,
            "chosen": self._chosen,
            "reservoir": None if self._chosen is not None else self._reservoir.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        if state["reservoir"] is not None:
            self._reservoir.load_state_dict(state["reservoir"])
        self._chosen = state["chosen"]
        self.open = bool(state["open"])

    def _reservoir_seed(self) -> int:
        return int(generator_for(self._seed, self._rank).initial_seed())

    def _merged(self, ranks: Ranks, device: torch.device) -> Tensor:
        """One uniform sample of what all processes saw; only the rows that are chosen travel."""
        reservoir = self._reservoir
        if ranks.world == 1:
            return reservoir.choose(len(reservoir), generator_for(self._seed, 2)).cpu()
        seen = ranks.stack(torch.tensor(reservoir.seen, device=device)).tolist()
        # The split is drawn from the shared seed, so that nobody has to tell it to the others.
        sizes = split_sizes(seen, self._size, generator_for(self._seed, 3))
        most = max(sizes)
        mine = reservoir.choose(sizes[ranks.rank], generator_for(self._seed, 2, ranks.rank)).to(device)
        padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        gathered = ranks.stack(padded)
        return torch.cat([gathered[rank, :size] for rank, size in enumerate(sizes)])

    def _fitted(self, images: Tensor, probe: Probe) -> Tensor:
        """Training images at the probe's size."""
        size = probe.images.shape[2:]
        if images.shape[2:] == size:
            return images
        if not getattr(self, "_said_size", False):
            self._said_size = True
            rank_zero_warn(
                f"Training images are {tuple(images.shape[2:])} and validation images {tuple(size)}: baselines are "
                "resized to the latter."
            )
        mode = "trilinear" if len(size) == 3 else "bilinear"
        resized = interpolate(images.float(), size=size, mode=mode, align_corners=False)
        return resized if probe.dtype.is_floating_point else resized.round()
