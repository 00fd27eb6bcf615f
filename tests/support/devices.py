"""The device that tests run on: ``--accelerator`` of pytest says which.

``pretended`` is a device that there is not, see :mod:`tests.support.pretended`: it finds tensors that lie on the wrong
device on a machine without an accelerator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

CHOICES = ("cpu", "cuda", "mps", "xpu", "pretended")

_ROOT = str(Path(__file__).parents[2])
_TESTS = str(Path(__file__).parents[1])

_chosen = "cpu"


def choose(accelerator: str) -> None:
    """Have tests run on an accelerator.

    Raises:
        ValueError: where there is none of this kind.

    """
    global _chosen
    if accelerator == "pretended":
        from tests.support import pretended

        pretended.make_known()
    elif accelerator != "cpu":
        available = getattr(torch, accelerator).is_available()
        if not available:
            raise ValueError(f"There is no device for --accelerator {accelerator} here.")
    _chosen = accelerator


def chosen() -> torch.device:
    """The device that was chosen."""
    return torch.device(_chosen, 0) if _chosen != "cpu" else torch.device("cpu")


def trainer_arguments() -> dict[str, Any]:
    """What a Trainer takes to train on the device that was chosen."""
    if _chosen != "pretended":
        return {"accelerator": _chosen, **({} if _chosen == "cpu" else {"devices": 1})}
    from tests.support.pretended_trainer import strategy

    return {"strategy": strategy()}


class MadeOn(TorchFunctionMode):
    """While active, tensors that a test makes lie on a device, with the values that they have on a CPU.

    Those of the package lie where it puts them, as in use: ``torch.set_default_device`` would move them as well, and
    hide where one is missing.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _device_constructors() or kwargs.get("device") is not None or not _asked_by_a_test():
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor) or is_lazy(made):
            return made
        return made.detach().to(self.device).requires_grad_(made.requires_grad)


def _asked_by_a_test() -> bool:
    """Whether it is a test, and not the package, on whose behalf a library makes a tensor."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_ROOT) and not name.endswith("support/devices.py"):
            return name.startswith(_TESTS)
        frame = frame.f_back
    return False
