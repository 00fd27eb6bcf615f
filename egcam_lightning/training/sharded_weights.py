"""Weights that FSDP2 spreads over processes: gathered unit by unit, where they are used. Every private touch of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.sharding import is_sharded_in_place

# Of a unit, what is changed while we look at the model, or what forgetting an aborted pass would lose.
_PUT_BACK = ("_all_gather_comm", "post_forward_mesh_info", "reduce_grads", "_partial_reduce_output")


class ShardedWeights:
    """The units of a module, each of which FSDP2 gathers by itself for a pass through it.

    Gathering is a collective: all processes must do it at once. Which units a pass gathers, and when, forward and
    backward, FSDP2 alone knows, so we stand in where it does: at the collective itself.

    Args:
        module: any module; without units, nothing here does anything.

    """

    def __init__(self, module: nn.Module) -> None:
        units = [one for one in module.modules() if is_sharded_in_place(one)]
        inner = {id(part) for unit in units for part in unit.modules() if part is not unit}
        self._roots: list[Any] = [unit for unit in units if id(unit) not in inner]
        states: list[Any] = list(dict.fromkeys(unit._get_fsdp_state() for unit in units))  # type: ignore[operator]
        self._units: list[Any] = [unit for state in states for unit in state._fsdp_param_groups]

    def __bool__(self) -> bool:
        return bool(self._units)

    @contextmanager
    def gathered_in_turn(
        self, take_turn: Callable[[int], None], collective: Callable[[Callable[[], Any]], Any]
    ) -> Iterator[None]:
        """Ask before each unit is gathered inside the body, hold no unit longer than it is used, reduce no gradients.

        Behind the body everything is as FSDP2 leaves it between two steps, with all weights sharded.

        Args:
            take_turn: called with the number of the unit; it returns when all processes gather this one.
            collective: calls what waits for the other processes.

        """
        for root in self._roots:
            root._get_fsdp_state()._lazy_init()  # else the first pass does so, for good
        before = [{name: getattr(unit, name) for name in _PUT_BACK} for unit in self._units]
        try:
            for number, unit in enumerate(self._units):
                unit.wait_for_unshard()
                unit._to_sharded()
                unit._all_gather_comm = _AllGather(unit._all_gather_comm, partial(take_turn, number), collective)
                unit.post_forward_mesh_info = unit.mesh_info  # sharded behind each pass: the root, too
                unit.reduce_grads = False
            yield
        finally:
            self.forget_pass()
            for unit, values in zip(self._units, before, strict=True):
                vars(unit).update(values)

    def begin_pass(self) -> None:
        """Forget a pass that ended half way, where there is one."""
        idle = all(unit._training_state.name in ("IDLE", "POST_BACKWARD") for unit in self._units)
        states = [root._get_fsdp_state()._state_ctx for root in self._roots]
        if not idle or any(s.iter_forward_root or s.post_backward_final_callback_queued for s in states):
            self.forget_pass()

    def forget_pass(self) -> None:
        """Bring all units to where they are between two passes."""
        for root in self._roots:
            root.reset_iter_state()

    def gather(self, number: int) -> None:
        """Take part in gathering a unit that another process needs, at any moment of a pass of one's own."""
        unit = self._units[number]
        state = unit._training_state
        unit.wait_for_unshard()  # what it has gathered ahead
        held = unit.is_unsharded
        _wait_for_device(unit.device)
        try:
            unit._training_state = type(state).IDLE
            unit._to_sharded()
            unit.unshard()
            unit.wait_for_unshard()
            if not held:
                unit._to_sharded()
        finally:
            unit._training_state = state
            _wait_for_device(unit.device)


class _AllGather:
    """A unit's own collective, when it is its turn."""

    def __init__(self, own: Any, take_turn: Callable[[], None], collective: Callable[[Callable[[], Any]], Any]) -> None:
        self._own, self._take_turn, self._collective = own, take_turn, collective

    def allocate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Memory for what is gathered: had before the others begin to wait."""
        memory: Tensor = self._own.allocate(*args, **kwargs)
        return memory

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._take_turn()
        return self._collective(partial(self._own, *args, **kwargs))


def _wait_for_device(device: torch.device) -> None:
    """Let a device finish: memory changes hands between its streams."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
