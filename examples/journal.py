"""What a study has measured so far, on disk, so that one that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from photographs import UnusableInputError


class Journal:
    """Records in a file, a line each; one that was cut off when the study was stopped is not there.

    Args:
        path: of the file; begun where there is none.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self.records = [json.loads(line) for line in whole.splitlines()]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
        self.records += records

    def of(self, stage: str) -> list[dict[str, Any]]:
        """The records of a stage."""
        return [record for record in self.records if record["stage"] == stage]


def begin(folder: Path, settings: dict[str, Any], may_grow: Collection[str] = ()) -> None:
    """Make a network's folder, or insist that what is there was measured in the same way.

    Args:
        folder: of the network.
        settings: what its records are measured with.
        may_grow: those that may be others when a study goes on: the records before stay the same.

    Raises:
        UnusableInputError: where it was not.

    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    fixed = {key: value for key, value in settings.items() if key not in may_grow}
    before = json.loads(path.read_text()) if path.is_file() else fixed
    for key, value in json.loads(json.dumps(fixed)).items():
        if before.get(key) != value:
            raise UnusableInputError(
                f"{folder} was begun with {key} = {before.get(key)!r}, and now it is {value!r}: the two cannot be "
                "compared. Write another --out, or what was asked for before."
            )
    path.write_text(json.dumps(fixed, indent=1))
