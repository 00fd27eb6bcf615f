"""One thread for all tests: some fork, and a forked process cannot use the thread pool of its parent."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
