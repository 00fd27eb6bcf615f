"""An audit with its patches as people see them: in the colours of the data set where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from egcam_lightning.findings.records import AuditRecord, Paste, Patch
from egcam_lightning.pictures.pixels import to_display


def as_shown(
    record: AuditRecord, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> AuditRecord:
    """Turn patches, and images with patches in them, into what people see.

    Args:
        record: an audit, with pixels as the model takes them, or as people see them already.
        mean: what was subtracted from the images, one number a channel.
        std: what they were divided by.

    Returns:
        The same, with pixels of three channels in uint8; see :func:`~egcam_lightning.pictures.pixels.to_display`.

    """

    def patches(found: tuple[Patch, ...]) -> tuple[Patch, ...]:
        return tuple(replace(patch, pixels=_alike(patch.pixels[None], mean, std)[0]) for patch in found)

    def paste(one: Paste) -> Paste:
        before, after = _alike(torch.stack([one.before, one.after]), mean, std)
        return replace(one, before=before, after=after)

    return replace(
        record,
        findings=tuple(replace(finding, patches=patches(finding.patches)) for finding in record.findings),
        classes=tuple(
            replace(
                one,
                patches=patches(one.patches),
                pastes=tuple(map(paste, one.pastes)),
                spread=tuple(replace(part, pastes=tuple(map(paste, part.pastes))) for part in one.spread),
            )
            for one in record.classes
        ),
    )


def _alike(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """``(N, 3, H, W)`` uint8, with one range for all: one below the other they are one picture."""
    count, channels, height, width = images.shape
    column = images.movedim(0, 1).reshape(1, channels, count * height, width)
    return to_display(column, mean, std)[0][0].view(count, height, width, 3).movedim(-1, 1)
