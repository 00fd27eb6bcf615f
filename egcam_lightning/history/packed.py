"""Snapshots in memory and in checkpoints, small whatever the layer's grid: a run of months keeps all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from egcam_lightning.history.codec import coarse_maps, pack_maps, snapshot_from_state, snapshot_to_state, unpack_maps
from egcam_lightning.history.folder import maps_file, read_maps
from egcam_lightning.history.records import Snapshot


class _Common(NamedTuple):
    """What many snapshots have in common: kept once."""

    when: str
    layer: str
    baselines: int
    shape: tuple[int, ...]  # of the maps that are kept here
    grid: tuple[int, ...]  # of those that were taken
    names: tuple[str, ...]
    keys: tuple[str, ...]


class _Entry(NamedTuple):
    epoch: int
    step: int
    common: _Common
    content: bytes
    checksum: int  # of the maps that were taken, by which a file is known to hold them


class _Kept(Snapshot):
    """A snapshot whose maps are fetched when they are asked for."""

    _fetch: Callable[[], Tensor]

    @cached_property
    def attribution(self) -> Tensor:
        return self._fetch()


class PackedSnapshots(Sequence[Snapshot]):
    """A sequence of snapshots, each unpacked when it is asked for.

    A tensor costs some 500 bytes beside its content, and a snapshot has a dozen. Packed, a snapshot of 16 images takes
    some 3 kB on a grid of 7 x 7, and at most 4 on any: maps of more than 64 cells are kept here as averages over at
    most 64, and read from the run folder when they are asked for. Where no folder holds them (any more), a snapshot's
    maps are those averages, as their shape says.

    Of the snapshots that a coming one is compared with (the last, and the first after an epoch with the same
    baselines, and with the first ones) all cells stay, here and in checkpoints.

    Args:
        snapshots: snapshots whose maps were rounded by :func:`~egcam_lightning.history.codec.round_maps`; of others the
            rounded maps are kept.
        folders: run folders to read maps from; the first that holds them is taken.

    Attributes:
        folders: the same, as a list that may be added to.

    Example:
        >>> one = torch.ones(1)
        >>> snapshot = Snapshot(0, 9, "epoch", "conv", 1, torch.ones(1, 2, 2), one.long(), one.long(), *[one] * 4)
        >>> packed = PackedSnapshots([snapshot]).plus(snapshot)
        >>> len(packed), packed[-1].key, packed[0].attribution.shape
        (2, (0, 9, 'epoch'), torch.Size([1, 2, 2]))

    """

    def __init__(self, snapshots: Iterable[Snapshot] = (), folders: Iterable[Path] = ()) -> None:
        self.folders = list(folders)
        self._entries: tuple[_Entry, ...] = ()
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}  # packed maps of which more is kept than the averages
        self._shared: dict[_Common, _Common] = {}
        self._extend(map(snapshot_to_state, snapshots))

    @classmethod
    def from_states(cls, states: Iterable[Mapping[str, Any]], folders: Iterable[Path] = ()) -> PackedSnapshots:
        """The snapshots that :meth:`states` gave, or several :func:`~egcam_lightning.history.codec.snapshot_to_state`.

        Raises:
            ValueError: where one of them is no state of a snapshot.

        """
        packed = cls(folders=folders)
        packed._extend(states)
        return packed

    def states(self) -> list[dict[str, Any]]:
        """What a checkpoint holds of the snapshots: no more than is in memory, so that no file is read for it."""
        return [self._state(index, entry) for index, entry in enumerate(self._entries)]

    def plus(self, snapshot: Snapshot) -> PackedSnapshots:
        """These snapshots and one more."""
        more = PackedSnapshots()
        more.folders, more._shared = self.folders, self._shared
        more._entries, more._whole = self._entries, self._whole
        more._extend([snapshot_to_state(snapshot)])
        return more

    @property
    def missing(self) -> int:
        """How many snapshots have averages for maps, since no folder has their file."""
        coarse = (self[index] for index in range(len(self)) if not self._is_whole(index))
        return sum(not any(maps_file(folder, one).is_file() for folder in self.folders) for one in coarse)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Snapshot, ...]: ...
    def __getitem__(self, index: int | slice) -> Snapshot | tuple[Snapshot, ...]:
        indices = range(len(self))[index]
        return self._unpack(indices) if isinstance(indices, int) else tuple(self._unpack(i) for i in indices)

    def _extend(self, states: Iterable[Mapping[str, Any]]) -> None:
        entries = list(self._entries)
        for state in states:
            entry, whole = self._pack(state)
            entries.append(entry)
            self._whole = _compared(entries, self._whole if whole is None else {**self._whole, len(entries) - 1: whole})
        self._entries = tuple(entries)

    def _pack(self, state: Mapping[str, Any]) -> tuple[_Entry, tuple[Tensor, Tensor] | None]:
        """The entry of a snapshot, and its maps where the entry has averages instead."""
        snapshot_from_state(state)  # or what cannot be read is found out when somebody asks for it
        maps, values, metrics = state["maps"], state["values"], state["metrics"]
        grid, checksum, whole = tuple(state.get("grid", maps.shape[1:])), int(state.get("checksum", 0)), None
        sides = len(grid) == maps.ndim - 1 and all(type(side) is int and side > 0 for side in grid)
        if not sides or ("grid" in state) != ("checksum" in state):
            raise ValueError(f"{grid!r} is no grid")
        if (coarse := coarse_maps(unpack_maps(maps, values[0]))).shape != maps.shape:
            whole = maps, values[0].clone()
            checksum = _checksum(*whole)
            maps, scale = pack_maps(coarse)
            values = torch.cat([scale[None], values[1:]])
        common = _Common(
            *(state["when"], state["layer"], state["baselines"]),
            *(tuple(maps.shape), grid, tuple(state["names"]), tuple(metrics)),
        )
        numbers = np.array(list(metrics.values()), np.float64)
        content = maps.numpy().tobytes() + values.numpy().tobytes() + numbers.tobytes()
        return _Entry(state["epoch"], state["step"], self._shared.setdefault(common, common), content, checksum), whole

    def _state(self, index: int, entry: _Entry) -> dict[str, Any]:
        epoch, step, (when, layer, baselines, shape, grid, names, keys), content, checksum = entry
        split = 2 * int(np.prod(shape)), len(content) - 8 * len(keys)
        maps = torch.from_numpy(np.frombuffer(content[: split[0]], np.float16).reshape(shape).copy())
        values = np.frombuffer(content[split[0] : split[1]], np.float32).reshape(1 + len(names), shape[0])
        state: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "when": when,
            "layer": layer,
            "baselines": baselines,
            "maps": maps,
            "names": list(names),
            "values": torch.from_numpy(values.copy()),
            "metrics": dict(zip(keys, np.frombuffer(content[split[1] :], np.float64).tolist(), strict=True)),
        }
        if index in self._whole:
            state["maps"], state["values"][0] = self._whole[index]
        elif not self._is_whole(index):
            state |= {"grid": grid, "checksum": checksum}
        return state

    def _unpack(self, index: int) -> Snapshot:
        entry = self._entries[index]
        snapshot = snapshot_from_state(self._state(index, entry))
        if self._is_whole(index):
            return snapshot
        kept = object.__new__(_Kept)
        fields = {name: value for name, value in vars(snapshot).items() if name != "attribution"}
        vars(kept).update(fields, _fetch=lambda: self._read(snapshot, entry))
        return kept

    def _is_whole(self, index: int) -> bool:
        """Whether all cells are in memory."""
        common = self._entries[index].common
        return index in self._whole or common.shape[1:] == common.grid

    def _read(self, snapshot: Snapshot, entry: _Entry) -> Tensor:
        """The maps of a snapshot from the first folder that holds them; otherwise the averages that it comes with."""
        shape = entry.common.shape[0], *entry.common.grid
        for folder in self.folders:
            try:
                maps = read_maps(maps_file(folder, snapshot), shape)
            except (ValueError, OSError):
                continue
            if _checksum(*maps) == entry.checksum:  # and not another run's, or another branch's of this one
                return unpack_maps(*maps)
        return snapshot.attribution


def _compared(entries: Sequence[_Entry], whole: dict[int, tuple[Tensor, Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
    """Those maps that a coming snapshot is compared with cell by cell.

    Baselines of generation 0 may come back after a resume; any other generation, once it is over, is over for good.
    """
    last = len(entries) - 1
    references: dict[int, int] = {}
    for index in sorted(whole):
        common = entries[index].common
        if common.when == "epoch" and common.baselines in (0, entries[last].common.baselines):
            references.setdefault(common.baselines, index)
    return {index: maps for index, maps in whole.items() if index == last or index in references.values()}


def _checksum(half: Tensor, scale: Tensor) -> int:
    return zlib.crc32(scale.numpy().tobytes(), zlib.crc32(half.numpy().tobytes()))
