"""Who monitors what is logged, and what they do while there is no value: they wait, and the fit goes on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from egcam_lightning.config import CallbackConfig
from egcam_lightning.history.history import History
from egcam_lightning.metrics import ExplanationConsensus
from egcam_lightning.metrics.registry import AUDITED, CHANGE, METRICS, OVERHEAD, OWN, build_metrics, needs_masks

# How Lightning has each of them do nothing where a value is missing. By name, since `pytorch_lightning` has classes of
# its own.
_PATIENCE: dict[str, tuple[str, Any]] = {
    "EarlyStopping": ("strict", False),
    "ModelCheckpoint": ("save_top_k", 0),
    "LRSchedulerConfig": ("strict", False),
}


class Monitors:
    """EarlyStopping, ModelCheckpoint and ReduceLROnPlateau, as far as they monitor values under one prefix.

    Lightning ends a fit where a monitored value is missing at a check. A value that does not exist yet is not made up,
    and the one from before training is that of another model: until there is a value of an epoch, whoever monitors it
    is set to do nothing without one, and set back then.

    Args:
        trainer: the Trainer, at its setup.
        config: what the user asked for.
        others: the prefixes of the other instances.

    Raises:
        MisconfigurationException: for a monitored key that no snapshot can have with these settings.

    """

    def __init__(
        self,
        trainer: Trainer,
        config: CallbackConfig,
        others: Iterable[str],
    ) -> None:
        self._trainer = trainer
        self._config = config
        self._others = tuple(f"{other}/" for other in others if other.startswith(f"{config.log_prefix}/"))
        self._late = set(CHANGE) - ({"prediction_changed"} if config.log_at_start else set())
        self._metrics = build_metrics(config.metrics, masks=config.keys.masks_key is not None)
        self._known: set[str] = set()
        self._waiting: list[tuple[Any, str, Any]] = []  # who waits, and the attribute and value to set back
        self._reported: set[int] = set()
        for part in self._parts(getattr(trainer, "callbacks", [])):
            self._check(part)

    def begin(self, pl_module: LightningModule, history: History) -> None:
        """Have the Trainer know the values of a run that is resumed, and the others wait for those that are to come.

        Args:
            pl_module: the module.
            history: the snapshots so far. What the Trainer knew of them it has forgotten between two fits.

        Raises:
            MisconfigurationException: for a learning rate scheduler that monitors a key that no snapshot can have.

        """
        schedulers = self._parts(self._trainer.lr_scheduler_configs)  # which are there by now
        for scheduler in schedulers:
            self._check(scheduler)
        values: dict[str, float] = {}
        for snapshot in history.snapshots:
            if snapshot.when == "epoch":
                values |= snapshot.metrics
        prefix, device = self._config.log_prefix, pl_module.device
        known = {
            f"{prefix}/{key}": torch.tensor(value, dtype=torch.float32, device=device) for key, value in values.items()
        }
        self._trainer.callback_metrics.update(known)  # as LearningRateMonitor does; no logger sees them
        self._known = set(known)
        for part in (*self._parts(getattr(self._trainer, "callbacks", [])), *schedulers):
            kind = _kind(part)
            if kind is not None and self._key(part) in self._possible and part.monitor not in self._known:
                attribute, patient = _PATIENCE[kind]
                self._waiting.append((part, attribute, getattr(part, attribute)))
                setattr(part, attribute, patient)
        self._foretell()

    def know(self, keys: Iterable[str]) -> None:
        """Let those go on that waited for one of ``keys``, as logged."""
        self._known.update(keys)
        for waiting in [one for one in self._waiting if one[0].monitor in self._known]:
            self._set_back(waiting)

    def tell(self) -> None:
        """Say who waits behind an epoch that should have brought a value; once each."""
        for part, _, _ in self._waiting:
            if id(part) not in self._reported:
                self._reported.add(id(part))
                rank_zero_warn(
                    f"{_name(part)} monitors {part.monitor!r}, which has no value yet, and does nothing until there is "
                    "one; training goes on."
                )

    def conclude(self) -> None:
        """Say at the end of training who has waited in vain for a checkpoint to be saved."""
        for part, _, _ in self._waiting:
            if _kind(part) == "ModelCheckpoint":
                rank_zero_warn(
                    f"{_name(part)} monitors {part.monitor!r}, which never had a value, and has saved no checkpoint by "
                    "it. Save the trained weights now with `trainer.save_checkpoint(path)`."
                )

    def end(self) -> None:
        """Leave all as the user made them."""
        for waiting in list(self._waiting):
            self._set_back(waiting)

    def _set_back(self, waiting: tuple[Any, str, Any]) -> None:
        part, attribute, value = waiting
        setattr(part, attribute, value)
        self._waiting.remove(waiting)

    @property
    def _possible(self) -> set[str]:
        return {*self._metrics, *OWN, *OVERHEAD}

    def _key(self, part: Any) -> str:
        return str(part.monitor.removeprefix(f"{self._config.log_prefix}/"))

    def _parts(self, parts: Iterable[Any]) -> list[Any]:
        """Those that monitor a key under this prefix, and not under another that is longer."""
        ours = f"{self._config.log_prefix}/"
        keys = [(part, getattr(part, "monitor", None)) for part in parts if getattr(part, "reduce_on_plateau", True)]
        return [
            part
            for part, key in keys
            if isinstance(key, str) and key.startswith(ours) and not key.startswith(self._others)
        ]

    def _foretell(self) -> None:
        """Say beforehand who may find no value at the first check, unless the user has said that it may be missing."""
        n = self._config.every_n_epochs or 1
        for part, _, value in self._waiting:
            if self._key(part) in self._late:
                reason = "it is measured against an earlier snapshot"
                save = "It saves nothing before."
            elif (self._trainer.check_val_every_n_epoch or 1) % n:
                reason = f"snapshots are taken every {n} epochs"
                save = f"Write ModelCheckpoint(..., every_n_epochs={n}) to save where there are new values."
            else:
                continue
            self._reported.add(id(part))
            write = {
                "EarlyStopping": "Write EarlyStopping(..., strict=False) to say that this is meant.",
                "LRSchedulerConfig": "Write 'strict': False beside 'monitor' to say that this is meant.",
                "ModelCheckpoint": save,
            }
            if value:
                rank_zero_info(
                    f"{_name(part)} monitors {part.monitor!r}, which may have no value at the first check: {reason}. "
                    f"It waits for the first one. {write[_kind(part) or '']}"
                )

    def _check(self, part: Any) -> None:
        """Refuse what can never have a value."""
        key, config = self._key(part), self._config
        seen = f"{_name(part)} monitors {part.monitor!r}"
        names = sorted(self._possible | METRICS.keys())
        if key in names:
            why = self._never(key)
            if why is not None:
                raise MisconfigurationException(f"{seen}, but {why}")
            return
        close = get_close_matches(key, names, cutoff=0.85)
        if close:
            found = " or ".join(repr(f"{config.log_prefix}/{name}") for name in close)
            raise MisconfigurationException(
                f"{seen}, but there is no such key. Write {found}; or, where your module logs it itself, another "
                "`log_prefix`."
            )
        rank_zero_warn(
            f"{seen}, which ExpectedGradCAMCallback does not log. Unless your module does, write one of "
            f"{', '.join(sorted(self._possible))}."
        )

    def _never(self, key: str) -> str | None:
        """Why a key of ours can have no value with these settings, and what to write; ``None`` where it can."""
        config = self._config
        if config.every_n_epochs is None:
            return "only values of epochs can be monitored, and every_n_epochs=None takes none. Write every_n_epochs=1."
        if key in self._metrics:
            return None
        consensus = any(isinstance(metric, ExplanationConsensus) for metric in self._metrics.values())
        masked = key == "consensus_null" or (key in METRICS and needs_masks(METRICS[key]()))
        if masked and config.keys.masks_key is None:
            return "it needs masks of the objects. Write `masks_key`, their key or position in a validation batch."
        if key in METRICS or (key == "consensus_null" and not consensus):
            missing = key if key in METRICS else "consensus"
            return f"the metric {missing!r} is not taken. Write metrics=({missing!r},), with the others that you want."
        if key in AUDITED and config.audit_every is None:
            return "the audit is taken at the end of the fit alone. Write audit_every=1 to have one at every snapshot."
        fewest = min(config.num_baselines, config.explainer.num_samples)
        if key in ("drift/noise_floor", "drift/significant") and fewest < 4:
            return (
                f"it needs 4 baselines an image, and there are {fewest}. Write num_baselines=4, num_samples=4 or more."
            )
        return None


def _kind(part: Any) -> str | None:
    """Which of those that can wait it is."""
    return next((kind.__name__ for kind in type(part).__mro__ if kind.__name__ in _PATIENCE), None)


def _name(part: Any) -> str:
    """What the user knows it by."""
    return "ReduceLROnPlateau" if _kind(part) == "LRSchedulerConfig" else type(part).__name__
