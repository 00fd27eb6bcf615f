"""Snapshots in memory, as small as on disk: a run of months keeps all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch

from egcam_lightning._packing import snapshot_from_state, snapshot_to_state
from egcam_lightning.snapshot import Snapshot


class PackedSnapshots(Sequence[Snapshot]):
    """A sequence of snapshots, each unpacked when it is asked for.

    A tensor costs some 500 bytes beside its content, and a snapshot has a dozen. Packed, a snapshot of 16 images on a
    7 x 7 grid takes some 3 kB instead of 8.

    Args:
        snapshots: snapshots whose maps were rounded by :func:`~egcam_lightning.store.round_maps`; of others the
            rounded maps are kept.

    Example:
        >>> one = torch.ones(1)
        >>> snapshot = Snapshot(0, 9, "epoch", "conv", 1, torch.ones(1, 2, 2), one.long(), one.long(), *[one] * 4)
        >>> packed = PackedSnapshots([snapshot]).plus(snapshot)
        >>> len(packed), packed[-1].key, packed[0].attribution.shape
        (2, (0, 9, 'epoch'), torch.Size([1, 2, 2]))

    """

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self._entries: tuple[tuple[Any, ...], ...] = ()
        self._shared: dict[Any, Any] = {}  # what snapshots have in common is kept once
        self._entries = tuple(self._pack(snapshot) for snapshot in snapshots)

    def plus(self, snapshot: Snapshot) -> PackedSnapshots:
        """These snapshots and one more."""
        more = PackedSnapshots()
        more._shared = self._shared
        more._entries = (*self._entries, more._pack(snapshot))
        return more

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Snapshot, ...]: ...
    def __getitem__(self, index: int | slice) -> Snapshot | tuple[Snapshot, ...]:
        if isinstance(index, slice):
            return tuple(_unpack(*entry) for entry in self._entries[index])
        return _unpack(*self._entries[index])

    def _pack(self, snapshot: Snapshot) -> tuple[Any, ...]:
        state = snapshot_to_state(snapshot)
        maps, values, metrics = state["maps"].numpy(), state["values"].numpy(), state["metrics"]
        numbers = np.array(list(metrics.values()), np.float64)
        common = (state["when"], state["layer"], state["baselines"], maps.shape, tuple(state["names"]), tuple(metrics))
        content = maps.tobytes() + values.tobytes() + numbers.tobytes()
        return state["epoch"], state["step"], self._shared.setdefault(common, common), content


def _unpack(epoch: int, step: int, common: tuple[Any, ...], content: bytes) -> Snapshot:
    when, layer, baselines, shape, names, keys = common
    split = 2 * int(np.prod(shape)), len(content) - 8 * len(keys)
    maps = np.frombuffer(content[: split[0]], np.float16).reshape(shape)
    values = np.frombuffer(content[split[0] : split[1]], np.float32).reshape(1 + len(names), shape[0])
    return snapshot_from_state(
        {
            "epoch": epoch,
            "step": step,
            "when": when,
            "layer": layer,
            "baselines": baselines,
            "maps": torch.from_numpy(maps.copy()),
            "names": list(names),
            "values": torch.from_numpy(values.copy()),
            "metrics": dict(zip(keys, np.frombuffer(content[split[1] :], np.float64).tolist(), strict=True)),
        }
    )
