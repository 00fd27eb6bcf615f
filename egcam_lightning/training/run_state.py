"""What outlives a fit, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from egcam_lightning.config import CallbackConfig
from egcam_lightning.data.baselines import Baselines
from egcam_lightning.data.probe import Probe
from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.history import History
from egcam_lightning.history.packed import PackedSnapshots
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.state_values import typed
from egcam_lightning.training.overhead_budget import OverheadBudget

_FOLDERS = 8  # so many run folders are remembered, the last ones

# In version 2 there was no audit; in version 1 every snapshot had all of its maps' cells, and a run had no name and no
# folder.
VERSION = 3


def new_run() -> str:
    """What a run is to be known by: no two have the same, whatever they are seeded with."""
    return secrets.token_hex(8)


def new_run_state(config: CallbackConfig) -> RunState:
    """The state of a run that has yet to begin."""
    nothing = ProbeImages(torch.empty(0, 0, 0, 3, dtype=torch.uint8))
    return RunState(
        Baselines(config.num_baselines, config.seed, config.baseline_samples),
        OverheadBudget(config.max_overhead),
        History(nothing, prefix=config.log_prefix, run=new_run()),
    )


@dataclass(eq=False)
class RunState:
    """The images, the baselines, the schedule and the snapshots of a run.

    Attributes:
        baselines: the training images that explanations are relative to.
        schedule: when snapshots are due.
        history: the snapshots, and the images for display.
        probe: the images that are explained, once they are chosen.
        pending: epoch and step of a snapshot that was to follow when the state was taken.

    """

    baselines: Baselines
    schedule: OverheadBudget
    history: History
    probe: Probe | None = None
    pending: tuple[int, int] | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        self.history = replace(self.history, snapshots=self._past.plus(snapshot))

    def look_in(self, folder: Path) -> None:
        """Read maps that are not in memory from this run folder, before any that a checkpoint names."""
        past = self._past
        past.folders[:] = [folder, *(other for other in past.folders if other != folder)]
        self.history = replace(self.history, snapshots=past)
        if past.missing:
            rank_zero_warn(
                f"The files of the run that the checkpoint is of are not in {' or '.join(map(str, past.folders))}: of "
                f"{past.missing} earlier snapshots the maps are known as averages over few cells alone. Coming "
                "snapshots, and what is measured on them, are not affected."
            )

    @property
    def _past(self) -> PackedSnapshots:
        past = self.history.snapshots
        return past if isinstance(past, PackedSnapshots) else PackedSnapshots(past)

    def _start_afresh(self) -> None:
        """Let go of the past: what follows is another run, and keeps out of its folder."""
        self.history = replace(self.history, snapshots=PackedSnapshots(), run=new_run(), audit=None)

    def adopt(self, probe: Probe) -> None:
        """Take a probe, unless a checkpoint brought one that the model can still take."""
        kept = self.probe
        if kept is None:
            self.probe = probe
            return
        if kept.shapes != probe.shapes:
            before, now = (" and ".join(str(tuple(shape)) for shape in one.shapes) for one in (kept, probe))
            rank_zero_warn(
                f"The checkpoint's explanations are of images of shape {before}, and the model's are of shape {now}. "
                "The history starts afresh; training is not affected."
            )
            self.probe = probe
            self._start_afresh()
            self.baselines.forget()
            return
        if kept.fingerprint != probe.fingerprint:
            rank_zero_warn(
                f"The validation data have changed: the first images are not those of the checkpoint (fingerprint "
                f"{probe.fingerprint}, expected {kept.fingerprint}). The checkpoint's images are explained on."
            )
        # The precision may have changed.
        others = tuple(a.to(b.dtype) for a, b in zip(kept.others, probe.others, strict=True))
        self.probe = replace(kept, dtype=probe.dtype, others=others)

    def show(self, view: ProbeImages, layer: str, grid: tuple[int, ...]) -> None:
        """Set what people see of the probe; a past that looked at another layer is let go, and told of."""
        past = self.history.snapshots
        seen = past[-1] if past else None
        if seen is not None and (seen.layer, *seen.attribution.shape) != (layer, len(view.images), *grid):
            rank_zero_warn(
                f"The checkpoint's explanations are of the layer {seen.layer!r} (images and grid "
                f"{tuple(seen.attribution.shape)}), and the model's are of {layer!r} ({(len(view.images), *grid)}): "
                "the architecture has changed. The history starts afresh; training is not affected."
            )
            self._start_afresh()
        self.history = replace(self.history, probe=view)

    def state_dict(self, elapsed: float, *, save_baselines: bool = True) -> dict[str, Any]:
        """Everything that a resumed fit goes on from, in plain tensors, numbers and strings.

        Args:
            elapsed: seconds of this fit so far.
            save_baselines: whether to hold the baselines, the larger part of it.

        """
        past = self._past
        return {
            "version": VERSION,
            "run": self.history.run,
            # The one before as well: a run may be killed before it has taken its past along.
            "folders": [str(folder.absolute()) for folder in past.folders[:_FOLDERS]],
            "probe": None if self.probe is None else self.probe.state_dict(),
            "baselines": self.baselines.state_dict(save_images=save_baselines),
            "snapshots": past.states(),
            "schedule": self.schedule.state_dict(elapsed),
            "owed": self.pending,
            "audit": None if self.history.audit is None else self.history.audit.to_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; a state that cannot be read is told of, and the run starts afresh."""
        version = state.get("version")
        if not isinstance(version, int) or version not in (1, 2, VERSION):
            rank_zero_warn(
                f"The checkpoint holds explanations in version {state.get('version')!r} of the format, and this "
                f"package reads versions 1 to {VERSION}. The history starts afresh; training is not affected."
            )
            return
        try:
            probe = None if state["probe"] is None else Probe.from_state_dict(state["probe"])
            named = state["version"] != 1
            folders = [Path(folder) for folder in typed(state, "folders", list)] if named else []
            snapshots = PackedSnapshots.from_states(state["snapshots"], folders)
            run = typed(state, "run", str) if named else self.history.run
            found = state["audit"] if state["version"] == VERSION else None
            audit = None if found is None else AuditRecord.from_state(found)
            pending = None if state["owed"] is None else _pair(state["owed"])
            # What is loaded takes the place of what there is when all of it has been read.
            baselines, schedule = copy.copy(self.baselines), copy.copy(self.schedule)
            baselines.load_state_dict(state["baselines"])
            schedule.load_state_dict(state["schedule"])
            if any(len(snapshot.target) != (0 if probe is None else len(probe)) for snapshot in snapshots):
                raise ValueError("the snapshots are of another number of images")
        except Exception as error:  # whatever a damaged state makes of the code that reads it
            rank_zero_warn(
                f"The explanations in the checkpoint cannot be read ({type(error).__name__}: {error}). The history "
                "starts afresh; training is not affected."
            )
            return
        self.probe, self.pending, self.baselines, self.schedule = probe, pending, baselines, schedule
        self.history = replace(self.history, snapshots=snapshots, run=run, audit=audit)


def _pair(value: Any) -> tuple[int, int]:
    """An epoch and a step."""
    epoch, step = value
    if not (type(epoch) is type(step) is int):
        raise TypeError(f"{value!r} is no epoch and step")
    return epoch, step
