"""What a command found, as JSON for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.files import replace_file
from egcam_lightning.metrics.faithfulness import Estimate
from egcam_lightning.metrics.registry import NUMBERS


def audit_table(record: AuditRecord | None) -> dict[str, Any]:
    """What an audit found, and a row a class; empty where there was none."""
    if record is None:
        return {"sentence": "", "findings": [], "classes": [], "notes": [], "faithfulness": []}
    return {
        "sentence": record.sentence,
        "findings": [
            {
                "class": finding.class_name,
                "target": finding.target,
                "kind": finding.kind,
                "effect": finding.effect,
                "control": finding.control,
                "interval": list(finding.interval),
                "sentence": finding.sentence,
            }
            for finding in record.findings
        ],
        "classes": record.rows(),
        "notes": list(record.notes),
        "faithfulness": [asdict(one) for one in record.faithfulness],
    }


def faithfulness_sentence(found: Sequence[Estimate]) -> str:
    """What is printed of the faithfulness of maps.

    Example:
        >>> faithfulness_sentence([Estimate("infidelity", 0.25, 0.2, 0.31, 32)])
        'Faithfulness of the maps of 32 images, with 95 % intervals: infidelity 0.25 [0.2, 0.31].'

    """
    said = [f"{_title(one.key)} {one.mean:.2g} [{one.low:.2g}, {one.high:.2g}]" for one in found]
    count = max(one.num_images for one in found)
    return f"Faithfulness of the maps of {count} images, with 95 % intervals: {', '.join(said)}."


def _title(key: str) -> str:
    title = NUMBERS[key].title
    return title[0].lower() + title[1:]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write what JSON can hold; a number that is not finite becomes null.

    Raises:
        OSError: where the disk does not take it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "found.json"
        >>> write_json(path, {"values": [1.0, math.nan]})
        >>> json.loads(path.read_text())
        {'values': [1.0, None]}

    """
    replace_file(path, json.dumps(_finite(content), indent=1, allow_nan=False).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
