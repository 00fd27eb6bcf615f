"""The larger sample of the validation data that an audit looks at: numbers only, so it is read when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.data.batch import BatchKeys
from egcam_lightning.data.loaders import CannotRead, SampleReader, batches_itself, num_samples
from egcam_lightning.data.metadata import balanced_indices, known_labels
from egcam_lightning.data.probe import Probe

_AT_ONCE = 64  # samples read in one batch, so that no more than these are held in full precision


def audit_sample(
    reader: SampleReader, loader: Any, count: int, keys: BatchKeys, to_model: Callable[[Any], Any]
) -> Probe:
    """Read images for an audit: of every class as many as of any other, where the data set keeps its labels.

    Elsewhere they are evenly spaced, which is about as balanced as the data are.

    Args:
        reader: reads samples of the loader.
        loader: the validation loader.
        count: how many images to take at most.
        keys: where things are in a batch.
        to_model: brings a batch to the model, as validation batches are.

    Returns:
        The images, rounded to their storage type, with their labels and masks as far as there are any.

    Raises:
        ValueError: where the data cannot be audited; the message says why.

    """
    delivered = () if isinstance(loader, (dict, list, tuple)) or not num_samples(loader) else reader.delivered(loader)
    if not delivered:
        raise ValueError("the validation data have no index by which images of every class could be chosen")
    known = known_labels(loader.dataset)
    if known is not None and keys.label_key is None:
        chosen = [delivered[i] for i in balanced_indices([known[index] for index in delivered], count)]
    else:
        count = min(count, len(delivered))
        chosen = [delivered[i * len(delivered) // count] for i in range(count)]
    size = 1 if batches_itself(loader) else _AT_ONCE
    try:
        batches = list(reader.read(loader, [chosen[i : i + size] for i in range(0, len(chosen), size)]))
    except CannotRead as error:
        raise ValueError(f"{error} {error.remedy}") from error
    parts = [Probe.from_batch(to_model(batch), size, keys) for batch in batches]
    if any(part.others for part in parts):
        raise ValueError("the model takes more of the batch than the images, which are pasted into others")
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise ValueError("the images are of several sizes, and patches are pasted at their place")
    first = parts[0]
    return replace(
        first,
        images=torch.cat([part.images.to(first.images.dtype) for part in parts]),
        labels=_joined([part.labels for part in parts]),
        masks=_joined([part.masks for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None
