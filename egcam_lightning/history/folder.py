"""The history on disk, and in a checkpoint.

A run folder holds three things, all of them open formats that no code has to be run to read::

    history.jsonl    a header line, then one line of JSON a snapshot
    probe.npz        what people see of the probe: images (N, H, W, 3) uint8, labels (N,) int64, masks (N, H, W) bool
    maps/*.npz       one file a snapshot: half (N, h, w) float16 and scale (N,) float32; the map is half * scale

The header holds ``format`` (``"egcam_lightning.history"``), ``version`` (``1``), ``package``, ``prefix``,
``run`` (what the run is known by, the same after a resume), ``fingerprint``, ``class_names`` (a list or null),
``restored``, ``images`` (N) and ``size`` (``[H, W]``). A line holds
``epoch``, ``step``, ``when``, ``layer``, ``baselines``, ``maps`` (a file name), ``grid`` (``[h, w]``), ``values`` (a
list of N numbers for each per-image field of :class:`~egcam_lightning.history.records.Snapshot`; null is NaN,
``"inf"`` and ``"-inf"`` are strings) and ``metrics``.

A run that was resumed where the files of its past were not to be found has maps on smaller grids there: averages.

The history of volumes has version ``2``, and depth in front of every size: images (N, D, H, W, 3), masks (N, D, H, W),
maps (N, d, h, w), ``size`` ``[D, H, W]`` and ``grid`` ``[d, h, w]``. That of images is what version 1 always was.

A line is written after its maps and in one call, so a killed run leaves at worst a torn last line, which is ignored.
A folder may come from anywhere: nothing is unpickled, and every size is checked before memory is taken.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.history.codec import pack_maps, unpack_maps
from egcam_lightning.history.files import read_npz, replace_file, write_npz
from egcam_lightning.history.json_lines import (
    MAX_LINE,
    decode_line,
    encode_line,
    from_json,
    grid_size,
    number,
    text,
    to_json,
    whole,
)
from egcam_lightning.history.records import ProbeImages, Snapshot

FORMAT = "egcam_lightning.history"

VERSIONS = {2: 1, 3: 2}  # by the number of spatial axes

# Far beyond what a run writes, far below what hurts to read.

MAX_FILE = 2**27

MAX_SNAPSHOTS = 100_000

MAX_IMAGES = 16_384

MAX_BYTES = 2**30

_MAPS_NAME = re.compile(r"maps/epoch=-?\d{1,20}-step=-?\d{1,20}(-start|-step)?\.npz")


class RunFolder:
    """The folder of one run, written as the run goes on.

    Args:
        path: the folder; it is made by :meth:`open`.

    Example:
        >>> import tempfile, torch
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> folder.open(ProbeImages(images=torch.zeros(1, 8, 8, 3, dtype=torch.uint8)))
        >>> one = torch.ones(1)
        >>> snapshot = Snapshot(0, 9, "epoch", "conv", 1, torch.ones(1, 2, 2), one.long(), one.long(), *[one] * 4)
        >>> folder.append(snapshot), folder.append(snapshot)  # the same occasion is written once
        (True, False)
        >>> len(read_folder(folder.path)[1])
        1

    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._keys: set[tuple[int, int, str]] = set()

    def open(
        self, probe: ProbeImages, prefix: str = "egcam", snapshots: Iterable[Snapshot] = (), run: str = ""
    ) -> None:
        """Make the folder hold exactly this probe and these snapshots, whatever it held before.

        A new run starts with no snapshots. A resumed one gives those of its checkpoint: lines past it are cut, and a
        run that goes on in another folder takes its past along.

        Args:
            probe: the images that every snapshot looks at.
            prefix: the prefix under which values are logged.
            snapshots: the past, oldest first.
            run: what the run is known by.

        Raises:
            OSError: where the disk does not take it; the history that was there is then still whole.

        """
        (self.path / "maps").mkdir(parents=True, exist_ok=True)
        types = {"images": torch.uint8, "labels": torch.int64, "masks": torch.bool}
        tensors = {name: getattr(probe, name) for name in types}
        arrays = {k: v.detach().cpu().to(types[k]).numpy() for k, v in tensors.items() if v is not None}
        write_npz(self.path / "probe.npz", arrays)
        lines, keys, kept = [encode_line(_header(probe, prefix, run))], set(), set()
        for snapshot in snapshots:  # one after the other: their maps together may be larger than memory
            lines.append(self._write_maps(snapshot))
            keys.add(snapshot.key)
            kept.add(_maps_name(snapshot))
        replace_file(self.path / "history.jsonl", b"".join(lines))
        self._keys = keys
        for file in (self.path / "maps").iterdir():
            if f"maps/{file.name}" not in kept and _MAPS_NAME.fullmatch(f"maps/{file.name}"):
                file.unlink()

    def append(self, snapshot: Snapshot) -> bool:
        """Add one snapshot.

        Args:
            snapshot: the newest snapshot, of the probe that :meth:`open` was given.

        Returns:
            Whether it was written: a second one of the same occasion is not.

        Raises:
            OSError: where the disk does not take it; the history on disk is then what it was before.

        """
        if snapshot.key in self._keys:
            return False
        line = self._write_maps(snapshot)
        with open(self.path / "history.jsonl", "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(line) != len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._keys.add(snapshot.key)
        return True

    def _write_maps(self, snapshot: Snapshot) -> bytes:
        """Write the maps of ``snapshot`` and return its line."""
        half, scale = pack_maps(snapshot.attribution)
        name = _maps_name(snapshot)
        write_npz(self.path / name, {"half": half.numpy(), "scale": scale.numpy()})
        fields = ((field, getattr(snapshot, field)) for field in snapshot.values_per_image())
        return encode_line(
            {
                "epoch": snapshot.epoch,
                "step": snapshot.step,
                "when": snapshot.when,
                "layer": snapshot.layer,
                "baselines": snapshot.baselines,
                "maps": name,
                "grid": list(half.shape[1:]),
                "values": {field: to_json(values) for field, values in fields if values is not None},
                "metrics": {k: float(v) for k, v in snapshot.metrics.items() if math.isfinite(v)},
            }
        )


def read_folder(run_dir: str | PathLike[str]) -> tuple[ProbeImages, tuple[Snapshot, ...], str, str]:
    """Read the history that a run left, wherever it came from: no code is run, and no more memory taken than it needs.

    Args:
        run_dir: the folder that holds ``history.jsonl``.

    Returns:
        The images, the snapshots, oldest first (a torn last line is left out), the prefix, and what the run is known
        by.

    Raises:
        ValueError: where the folder holds no history, or a damaged or foreign one.

    Example:
        >>> read_folder("/nowhere")
        Traceback (most recent call last):
        ...
        ValueError: /nowhere holds no history.jsonl: give the folder that a run wrote.

    """
    folder = Path(run_dir)
    path = folder / "history.jsonl"
    if not path.is_file():
        below = sorted(str(found.parent) for found in folder.glob("*/history.jsonl"))[:3]
        hint = f"did you mean {' or '.join(below)}?" if below else "give the folder that a run wrote."
        raise ValueError(f"{folder} holds no history.jsonl: {hint}")
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path} is larger than {MAX_FILE >> 20} MiB: no run writes that.")
    where = str(path)
    try:
        with open(path, "rb") as file:
            probe, prefix, run = _read_header(folder, decode_line(file.readline(MAX_LINE + 1)))
            snapshots: dict[tuple[int, int, str], Snapshot] = {}
            left = MAX_BYTES
            while (line := file.readline(MAX_LINE + 1)).endswith(b"\n") or len(line) > MAX_LINE:
                where = f"{path}, line {len(snapshots) + 2}"
                snapshot = _read_snapshot(folder, decode_line(line), probe, left)
                left -= snapshot.attribution.nbytes
                if snapshot.key in snapshots or len(snapshots) == MAX_SNAPSHOTS:
                    raise ValueError(f"{snapshot.name} is there twice or too many")
                snapshots[snapshot.key] = snapshot
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError) as error:
        text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where} is damaged, or no history of this package: {text}") from error
    return probe, tuple(snapshots.values()), prefix, run


def run_of(run_dir: str | PathLike[str]) -> str | None:
    """What the run is known by whose history a folder holds.

    Args:
        run_dir: the folder.

    Returns:
        ``None`` where there is no history; an empty string where it does not say whose it is.

    Example:
        >>> run_of("/nowhere") is None
        True

    """
    try:
        with open(Path(run_dir) / "history.jsonl", "rb") as file:
            return text(decode_line(file.readline(MAX_LINE + 1)).get("run", ""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        return ""


def maps_file(run_dir: Path, snapshot: Snapshot) -> Path:
    """The file in a run folder that holds the maps of a snapshot."""
    return run_dir / _maps_name(snapshot)


def read_maps(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read the packed maps of one snapshot.

    Args:
        path: the file.
        shape: ``(N, h, w)`` (or ``(N, d, h, w)``).

    Returns:
        As :func:`pack_maps`.

    Raises:
        ValueError: where the file is missing, damaged, or holds anything else.

    """
    arrays = read_npz(path, {"half": ("<f2", shape), "scale": ("<f4", shape[:1])})
    return torch.from_numpy(arrays["half"]), torch.from_numpy(arrays["scale"])


def _header(probe: ProbeImages, prefix: str, run: str) -> dict[str, Any]:
    try:
        package = version("egcam-lightning")
    except PackageNotFoundError:
        package = "unknown"
    return {
        "format": FORMAT,
        "version": VERSIONS[probe.images.ndim - 2],
        "package": package,
        "prefix": prefix,
        "run": run,
        "fingerprint": probe.fingerprint,
        "class_names": None if probe.class_names is None else list(probe.class_names),
        "restored": probe.restored,
        "images": len(probe.images),
        "size": list(probe.images.shape[1:-1]),
    }


def _read_header(folder: Path, header: dict[str, Any]) -> tuple[ProbeImages, str, str]:
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is {str(header.get('format'))[:80]!r}, expected {FORMAT!r}")
    axes = next((axes for axes, known in VERSIONS.items() if header["version"] == known), None)
    if axes is None:
        raise ValueError(
            f"its format version is {str(header['version'])[:20]}, and this release reads "
            f"{' and '.join(map(str, VERSIONS.values()))}: upgrade"
        )
    count, names = whole(header["images"], 0, MAX_IMAGES), header["class_names"]
    size = grid_size(header["size"], axes)
    if 4 * count * math.prod(size) > MAX_BYTES:
        raise ValueError(f"{count} images of {'x'.join(map(str, size))} are more than a probe holds")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("class_names is no list of strings")
    expected = {
        "images": ("|u1", (count, *size, 3)),
        "labels": ("<i8", (count,)),
        "masks": ("|b1", (count, *size)),
    }
    arrays = read_npz(folder / "probe.npz", expected, optional=("labels", "masks"))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    names = None if names is None else tuple(names)
    probe = ProbeImages(
        **tensors, class_names=names, fingerprint=text(header["fingerprint"]), restored=header["restored"] is True
    )
    return probe, text(header["prefix"]), text(header.get("run", ""))


def _read_snapshot(folder: Path, line: dict[str, Any], probe: ProbeImages, left: int) -> Snapshot:
    count, grid = len(probe.images), grid_size(line["grid"], probe.images.ndim - 2)
    if 4 * count * math.prod(grid) > left:
        raise ValueError(f"all maps together are more than {MAX_BYTES >> 20} MiB")
    if not _MAPS_NAME.fullmatch(text(line["maps"])):
        raise ValueError(f"{line['maps'][:80]!r} is no file of maps")
    metrics = line["metrics"]
    if not isinstance(metrics, dict) or len(metrics) > 1000:
        raise ValueError("metrics is no dictionary of at most 1000 numbers")
    half, scale = read_maps(folder / line["maps"], (count, *grid))
    values = line["values"]
    fields = {
        name: from_json(name, values[name], count, integer=declared.integer)
        for name, declared in Snapshot.values_per_image().items()
        if name in values or not declared.optional
    }
    return Snapshot(
        epoch=whole(line["epoch"]),
        step=whole(line["step"]),
        when=text(line["when"]),
        layer=text(line["layer"]),
        baselines=whole(line["baselines"]),
        attribution=unpack_maps(half, scale),
        metrics={name: number(value) for name, value in metrics.items()},
        **fields,
    )


def _maps_name(snapshot: Snapshot) -> str:
    return f"maps/{snapshot.name}.npz"
