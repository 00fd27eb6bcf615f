"""Reads back what W&B wrote offline: a ``.wandb`` file is a log of protobuf records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: 7 header bytes, then 32 KiB blocks of (checksum, length, kind, content)."""
    from wandb.proto import wandb_internal_pb2

    content, position, block, whole = path.read_bytes(), 7, 32768, b""
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def finished_records(files: Path) -> list[Any]:
    """All records of a finished run, by its ``files`` folder.

    W&B's own process writes the file, and may be at it for a moment after ``wandb.finish()`` has returned.
    """
    (file,) = files.parent.glob("*.wandb")
    end = time.monotonic() + 60
    while not any(record.HasField("exit") for record in records(file)) and time.monotonic() < end:
        time.sleep(0.05)
    return list(records(file))


def history_rows(found: Iterable[Any]) -> list[dict[str, Any]]:
    """The history rows among records, each a nested dictionary."""
    rows: list[dict[str, Any]] = []
    for record in found:
        if record.HasField("history"):
            rows.append({})
            for item in record.history.item:
                *parents, name = item.nested_key or [item.key]
                place = rows[-1]
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[name] = json.loads(item.value_json)
    return rows
