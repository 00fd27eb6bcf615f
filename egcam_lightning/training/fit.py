"""What is there during one fit, and how its module is called: as validation does, unheard, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from egcam_lightning.config import CallbackConfig
from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.config import ExplainerConfig
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.training.failsafe import Failsafe
from egcam_lightning.training.lightning_compat import print_in_progress_bar, unheard
from egcam_lightning.training.process_group import ProcessGroup
from egcam_lightning.training.run_state import RunState

_NOTICED_SECONDS = 1.5  # people wonder why nothing moves


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit.

    Attributes:
        trainer: the Trainer.
        module: its module.
        config: what the user asked for.
        run_state: what outlives the fit; snapshots are added to it.
        failsafe: where failures go that must not stop training.
        estimates: whether an audit says how faithful the maps are as well, which takes longer than the audit.

    """

    trainer: Trainer
    module: LightningModule
    config: CallbackConfig
    run_state: RunState
    failsafe: Failsafe
    estimates: bool = False

    @cached_property
    def process_group(self) -> ProcessGroup:
        """The processes that share the fit."""
        return ProcessGroup(self.trainer.strategy, self.module)

    @cached_property
    def explainer(self) -> ExplainerConfig:
        """How the module is explained.

        Where its weights are spread over processes, memory is what is short: then no more points go through it at once
        than a process has images of the probe, unless the user says how many. Larger chunks need fewer gatherings.
        """
        asked = replace(self.config.explainer, forward_fn=self.forward)
        if asked.chunk_size is not None or not self.process_group.shards_weights:
            return asked
        return replace(asked, chunk_size=-(-self.config.num_images // self.process_group.shares.count))

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Look at the module: inside, what it logs reaches nobody; behind, it is as it was.

        The copy of its weights that this takes fits where their gradients are in training.
        """
        with unheard(self.trainer, self.module), isolated(self.module, seed=self.config.seed, weights=True):
            yield

    def announce_wait(self, what: str, seconds: float) -> None:
        """Say in the Trainer's progress bar that training waits, where it will be noticed."""
        if seconds > _NOTICED_SECONDS:
            message = f"{what} (about {seconds:.0f} s)"
            self.failsafe.guard("the progress message", lambda: print_in_progress_bar(self.trainer, message))

    def forward(self, module: LightningModule, images: Tensor, *others: Any) -> Any:
        """Call the module in the precision in which the validation loop does; all arithmetic around it is float32."""
        forward_fn = self.config.explainer.forward_fn
        self.process_group.begin_pass()
        with self.trainer.precision_plugin.forward_context():
            return module(images, *others) if forward_fn is None else forward_fn(module, images, *others)

    def attempt(self, images: Tensor, *others: Tensor) -> Any:
        """What the module returns; where it cannot be called so, say what to write."""
        try:
            return self.forward(self.module, images, *others)
        except (TypeError, NotImplementedError, AttributeError, LookupError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            # What torch says of shapes may as well be a fault of the moment: training goes on then.
            of_torch = isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
            raise (RuntimeError if of_torch else MisconfigurationException)(
                f"Calling the module with images of shape {tuple(images.shape)} failed: {type(error).__name__}: "
                f"{error}. Pass `input_key` where the images that it takes are others of the batch; `forward_fn`, such "
                "as `lambda module, images: module.model(images)`, where it takes them in another way. Where it takes "
                "more of the batch than the images, name it in `additional_keys`."
            ) from error
