"""One thread for all tests, and the same random numbers every time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # some tests fork, and a forked process cannot use the thread pool of its parent
torch.manual_seed(0)  # what a test module draws when it is imported


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on what was drawn before it; without this a network drawn badly fails one run in many."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what is seeded
    torch.manual_seed(0)
