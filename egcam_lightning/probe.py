"""The probe: the fixed images that every snapshot looks at, and the classes explained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from egcam_lightning.batches import (
    BatchKeys,
    Path,
    find_images,
    find_label_sets,
    find_labels,
    find_masks,
    find_others,
    get,
    rival_labels,
)


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed images, as the model takes them, and what is known of them.

    Attributes:
        images: ``(N, C, H, W)``, rounded to their storage type, on the CPU.
        labels: ``(N,)`` int64, or ``None``; of a multi-label task ``(N, classes)`` bool.
        masks: ``(N, H, W)`` bool, where the object is, or ``None``.
        targets: ``(N,)`` int64, the explained classes, or ``(N, classes)`` bool, sets of them; ``None`` as long as
            they are not settled.
        dtype: the type in which the model takes them.
        others: the model's other inputs, ``(N, ...)`` each, on the CPU.

    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    targets: Tensor | None = None
    dtype: torch.dtype = torch.float32
    others: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_batch(
        cls,
        batch: Any,
        num_images: int,
        keys: BatchKeys,
    ) -> Probe:
        """Take the first ``num_images`` of a batch that has been through all transfers.

        Raises:
            ValueError: where the batch has no images, or under one of the keys not what is expected there.

        """
        path = find_images(batch, keys.input)
        others = find_others(batch, path, keys.additional)
        labels = find_labels(batch, path, others, keys.label)
        rivals = [] if labels is None or keys.label is not None else rival_labels(batch, path, labels, others)
        if labels is not None and rivals:
            places = [repr(".".join(map(str, place))) for place in (labels, *rivals)]
            rank_zero_warn(
                f"The integers at {places[0]} of the batch are taken for the labels; those at {', '.join(places[1:])} "
                f"would do as well. Pass `label_key`, such as label_key={'.'.join(map(str, labels))!r}, to choose."
            )
        labels = labels or find_label_sets(batch, path, others)
        masks = None if keys.masks is None else find_masks(batch, path, keys.masks)

        def part(where: Path) -> Tensor:
            found: Tensor = get(batch, where)[:num_images].detach().cpu()
            return found.clone()  # the batch is others' to write to

        images = part(path)
        return cls(
            images=to_storage(images),
            labels=None if labels is None else _as_labels(part(labels)),
            masks=None if masks is None else (part(masks).reshape(len(images), *images.shape[2:]) != 0),
            dtype=images.dtype,
            others=tuple(part(where) for where in others),
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the images and labels: equal fingerprints, same probe."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), str(self.images.dtype))).encode())
        digest.update(self.images.contiguous().view(torch.uint8).numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        for other in self.others:
            digest.update(other.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def inputs(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """What the model takes for some of them: the images ``(len(rows), C, H, W)``, and ``(len(rows), ...)`` each."""
        return self.images[rows].to(device, self.dtype), *(other[rows].to(device) for other in self.others)

    @property
    def target_sets(self) -> Tensor | None:
        """``(N, classes)`` bool: the sets of classes that are explained, where it is not one class an image."""
        return self.targets if self.targets is not None and self.targets.ndim == 2 else None

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shape of each of the model's inputs, without the images' dimension."""
        return tuple(tensor.shape[1:] for tensor in (self.images, *self.others))

    def with_targets(self, targets: Tensor) -> Probe:
        """The same probe with its explained classes settled."""
        return replace(self, targets=targets.cpu() if targets.ndim == 2 else targets.cpu().long())

    def state_dict(self) -> dict[str, Any]:
        """Everything but what the data set gives again, as plain tensors and strings."""
        return {
            "images": self.images,
            "labels": self.labels,
            "masks": self.masks,
            "targets": self.targets,
            "dtype": str(self.dtype).removeprefix("torch."),
            "others": self.others,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Probe:
        """The probe that :meth:`state_dict` was taken of.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: where the state is damaged.

        """
        images, labels, masks, targets = (state[name] for name in ("images", "labels", "masks", "targets"))
        dtype, others = getattr(torch, state["dtype"]), tuple(state["others"])
        if images.ndim not in (4, 5) or 0 in images.shape or not isinstance(dtype, torch.dtype):
            raise ValueError(f"images of shape {tuple(images.shape)} and type {dtype} are none")
        for name, rows in (("labels", labels), ("targets", targets), *(("others", other) for other in others)):
            if rows is not None and len(rows) != len(images):
                raise ValueError(f"there are {len(rows)} {name} to {len(images)} images")
        if masks is not None and masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(f"masks have shape {tuple(masks.shape)}, and images {tuple(images.shape)}")
        return cls(images, labels, masks, targets, dtype, others)


def _as_labels(found: Tensor) -> Tensor:
    """``(N,)`` int64, one class an image, as far as there is one; otherwise ``(N, classes)`` bool."""
    if found.ndim < 2 or found.shape[1] == 1:
        return found.reshape(-1).long()
    return found.long().argmax(1) if bool((found.sum(1) == 1).all()) else found.bool()


def to_storage(images: Tensor) -> Tensor:
    """Round images to the type in which a checkpoint keeps them, before anything is computed from them.

    Whole numbers stay as they are; floating numbers become float16 where their range allows, otherwise float32.
    """
    if not images.is_floating_point() or images.dtype == torch.float16:
        return images.clone()
    return images.to(storage_dtype(images))


def storage_dtype(images: Tensor) -> torch.dtype:
    """``torch.float16`` where it holds the values, otherwise ``torch.float32``."""
    fits = bool(images.abs().amax() < torch.finfo(torch.float16).max)  # False for NaN too
    return torch.float16 if fits else torch.float32
