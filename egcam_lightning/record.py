"""What outlives a fit, and what a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from egcam_lightning.baselines import Baselines
from egcam_lightning.packed import PackedSnapshots
from egcam_lightning.probe import Probe
from egcam_lightning.schedule import Schedule
from egcam_lightning.snapshot import History, ProbeImages, Snapshot
from egcam_lightning.store import snapshot_from_state, snapshot_to_state

VERSION = 1


@dataclass(eq=False)
class Record:
    """The images, the baselines, the schedule and the snapshots of a run.

    Attributes:
        baselines: the training images that explanations are relative to.
        schedule: when snapshots are due.
        history: the snapshots, and the images for display.
        probe: the images that are explained, once they are chosen.
        owed: epoch and step of a snapshot that was to follow when the state was taken.

    """

    baselines: Baselines
    schedule: Schedule
    history: History
    probe: Probe | None = None
    owed: tuple[int, int] | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        past = self.history.snapshots
        packed = past if isinstance(past, PackedSnapshots) else PackedSnapshots(past)
        self.history = History(self.history.probe, packed.plus(snapshot), self.history.prefix)

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
            self.history = History(self.history.probe, (), self.history.prefix)
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
            past = PackedSnapshots()
        self.history = History(view, past, self.history.prefix)

    def state_dict(self, elapsed: float, *, save_baselines: bool = True) -> dict[str, Any]:
        """Everything that a resumed fit goes on from, in plain tensors, numbers and strings.

        Args:
            elapsed: seconds of this fit so far.
            save_baselines: whether to hold the baselines, the larger part of it.

        """
        return {
            "version": VERSION,
            "probe": None if self.probe is None else self.probe.state_dict(),
            "baselines": self.baselines.state_dict(save_images=save_baselines),
            "snapshots": [snapshot_to_state(snapshot) for snapshot in self.history.snapshots],
            "schedule": self.schedule.state_dict(elapsed),
            "owed": self.owed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; a state that cannot be read is told of, and the run starts afresh."""
        if state.get("version") != VERSION:
            rank_zero_warn(
                f"The checkpoint holds explanations in version {state.get('version')!r} of the format, and this "
                f"package reads version {VERSION}. The history starts afresh; training is not affected."
            )
            return
        try:
            probe = None if state["probe"] is None else Probe.from_state_dict(state["probe"])
            snapshots = PackedSnapshots(snapshot_from_state(one) for one in state["snapshots"])
            self.baselines.load_state_dict(state["baselines"])
            owed = state["owed"]
            self.schedule.load_state_dict(state["schedule"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            rank_zero_warn(
                f"The explanations in the checkpoint cannot be read ({type(error).__name__}: {error}). The history "
                "starts afresh; training is not affected."
            )
            return
        self.probe, self.owed = probe, owed
        self.history = History(self.history.probe, snapshots, self.history.prefix)
