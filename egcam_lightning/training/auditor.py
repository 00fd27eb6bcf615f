"""The audit of a fit: when it is due, on how many images, and what is kept of it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from egcam_lightning.data.audit_sample import audit_sample
from egcam_lightning.data.loaders import SampleReader
from egcam_lightning.data.metadata import balanced_indices
from egcam_lightning.data.probe import Probe
from egcam_lightning.data.targets import chosen_targets, known_targets
from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.findings.audit import audit_with
from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.metrics.faithfulness import Estimate, estimate_faithfulness
from egcam_lightning.pictures.patches import as_shown
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.lightning_compat import (
    to_model,
    validation_data,
    validation_source,
)
from egcam_lightning.training.probe_display import normalization_for

_SAMPLES = 2  # draws of each map: it only says where to try, and what is said is said by pasting
# An audit takes about twelve passes an image; a default snapshot some fifty. In images of a snapshot:
_COST = 0.25
_FEWEST = 64
# Numbers in all images of an audit, which lie on the device together: 512 MB. 256 colour images fit up to 418 x 418.
_NUMBERS = 2**27
_ESTIMATED = 32  # images at most whose maps are judged


def audit_size(asked: int, snapshot_seconds: float, num_images: int, left: float | None, numbers: int = 1) -> int:
    """How many images an audit takes, within the time that is left for it and within memory.

    Args:
        asked: how many the user wants at most.
        snapshot_seconds: what the last snapshot took.
        num_images: of how many images it was.
        left: seconds of the budget; ``None`` for any.
        numbers: how many an image has.

    Returns:
        At least 64, or what was asked for: a small sample is stated as one, and better than none.

    Example:
        >>> audit_size(256, snapshot_seconds=8.0, num_images=16, left=16.0)
        128

    """
    asked = min(asked, max(_FEWEST, _NUMBERS // numbers))
    if left is None or snapshot_seconds <= 0:
        return asked
    affordable = left / _seconds_an_image(snapshot_seconds, num_images)
    return min(asked, max(_FEWEST, math.floor(affordable)))


def _seconds_an_image(snapshot_seconds: float, num_images: int) -> float:
    """What auditing an image takes, going by a snapshot of so many."""
    return _COST * snapshot_seconds / max(num_images, 1)


def audit_everywhere(fit: Fit, snapshot_seconds: float, left: float | None) -> AuditRecord | None:
    """Audit in all processes, each of which does its share; keep what was found, the same in every process."""
    if not fit.config.audit_images or getattr(fit.trainer, "fast_dev_run", False):
        return None
    group = fit.process_group
    probe = fit.run_state.probe
    numbers = 1 if probe is None else probe.images[0].numel()
    count = group.broadcast(audit_size(fit.config.audit_images, snapshot_seconds, _explained(fit), left, numbers))
    found = fit.failsafe.guard(
        "the audit", lambda: group.run_or_raise_everywhere(lambda: audit_fit(fit, snapshot_seconds, count))
    )
    record: AuditRecord | None = group.broadcast(found)
    if record is not None:
        fit.run_state.history = replace(fit.run_state.history, audit=record)
    return record


def audit_fit(fit: Fit, snapshot_seconds: float, count: int) -> AuditRecord:
    """Audit the module of a fit on a sample of its validation data, which the first process reads.

    Args:
        fit: the fit.
        snapshot_seconds: what the last snapshot took.
        count: how many images at most, the same in every process.

    Returns:
        What was found and what was tested; where nothing could be, why.

    """
    trainer, module, config, group = fit.trainer, fit.module, fit.config, fit.process_group
    expected = count * _seconds_an_image(snapshot_seconds, _explained(fit))
    fit.announce_wait(f"Auditing {count} images: pasting patches into others", expected / group.shares.count)
    explainer = replace(fit.explainer, num_samples=_SAMPLES)
    with validation_data(trainer, module):
        read = group.run_or_raise_everywhere(lambda: _read(fit, count) if group.rank == 0 else None)
    sample: Probe | str = group.broadcast(read)
    if isinstance(sample, str):
        return not_tested(sample)
    try:
        with fit.isolated():
            (images,) = group.run_or_raise_everywhere(lambda: sample.inputs(torch.arange(len(sample)), module.device))
            record = audit_with(
                module,
                explainer,
                images,
                None if sample.labels is None else sample.labels.to(module.device),
                masks=None if sample.masks is None else sample.masks.to(module.device),
                class_names=fit.run_state.history.probe.class_names,
                seed=config.seed,
                workers=group,
            )
    except ValueError as error:  # data and models that cannot be audited; the message says why
        return not_tested(str(error))
    if fit.estimates:
        with fit.isolated():
            record = replace(record, faithfulness=_faithfulness(fit, sample, images))
    display = normalization_for(trainer, module, images, config.normalization)
    if count < config.audit_images and len(images) == count:
        note = (
            f"{count} images were looked at instead of `audit_images={config.audit_images}`, to stay within "
            "`max_overhead` and memory."
        )
        record = replace(record, notes=(*record.notes, note))
    return as_shown(record, *(display or ()))


def _faithfulness(fit: Fit, sample: Probe, images: Tensor) -> tuple[Estimate, ...]:
    """How faithful the maps of some of the audited images are, of each class as many, explained as in a snapshot."""
    found = fit.run_state.baselines.current(fit.process_group, sample, fit.module.device)
    count = min(_ESTIMATED, len(images))
    labels = sample.labels
    chosen = (
        [i * len(images) // count for i in range(count)] if labels is None else balanced_indices(labels.tolist(), count)
    )
    images = images[chosen]
    labels = None if labels is None else labels[chosen].to(images.device)
    explainer = ExpectedGradCAM(fit.module, **fit.explainer.arguments())
    with torch.no_grad():
        output = explainer.forward(images)
    target = known_targets(fit.config.target, labels, count, output, explainer.score)
    if target is None:
        target = chosen_targets(fit.config.target, labels, output, explainer.score)
    return estimate_faithfulness(
        explainer, images, None if found is None else found[0], target.to(images.device), seed=fit.config.seed
    )


def _explained(fit: Fit) -> int:
    return len(fit.run_state.history.probe.images)


def _read(fit: Fit, count: int) -> Probe | str:
    """The images of an audit; a sentence why not where there are none to choose from."""
    trainer, module = fit.trainer, fit.module
    try:
        with fit.isolated():
            transfer = partial(to_model, trainer, module, validating=True)
            reader = SampleReader(trainer, module)
            return audit_sample(reader, validation_source(trainer), count, fit.config.keys, transfer)
    except ValueError as error:
        return str(error)


def not_tested(reason: str) -> AuditRecord:
    """The record of an audit that could not be made.

    Example:
        >>> not_tested("the model is a regression").sentence
        'Not tested for shortcuts: the model is a regression.'

    """
    reason = reason.removeprefix("No audit: ").rstrip(".")
    return AuditRecord((), (), 0, "", math.inf, f"Not tested for shortcuts: {reason}.")


def scalars_of(record: AuditRecord | None) -> dict[str, float]:
    """What is logged of an audit, by key; nothing where nothing was tested."""
    tested = [] if record is None else [one for one in record.classes if one.captures]
    if not tested:
        return {}
    return {
        "capture/max": max(effect.effect for one in tested for _, effect in one.captures),
        "capture/excess": max(one.excess for one in tested),
        "capture/weight": max(one.weight for one in tested),
    }
