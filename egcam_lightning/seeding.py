"""Generators that follow from the user's seed and nothing else."""

from __future__ import annotations

import numpy as np
import torch


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator of its own for a tuple of non-negative integers: a seed, an image's index, a purpose."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
