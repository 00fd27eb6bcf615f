"""What the tests of a device find on a machine without one, on a device that there is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A sample of all that runs so: `pytest --accelerator pretended` runs the rest.
SAMPLE = [
    "tests/devices/test_waits.py",
    "tests/explain/test_other_inputs.py",
    "tests/explain/test_tasks.py",
    "tests/metrics/test_metrics_volumes.py",
    "tests/contract/test_takes_other_inputs.py",
]


@pytest.mark.cpu("it starts the others")
@pytest.mark.timeout(300)
def test_tensors_lie_where_they_should_and_nobody_waits() -> None:
    """In a process of its own, since torch knows a second device from then on, and its threads cannot be forked."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--accelerator", "pretended", *SAMPLE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
