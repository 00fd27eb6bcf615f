"""Keeps the tests of the contract off the network and the user's files."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Nothing is written outside the test's own folder, wherever a Trainer thinks it is."""
    monkeypatch.chdir(tmp_path)
