"""A few of the images that patches turned, small, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from egcam_lightning.findings.interventions import Pool
from egcam_lightning.findings.records import Paste, class_name
from egcam_lightning.findings.windows import Windows, pasted

EXAMPLES = 4  # of each class
_SIDE = 32  # pixels of the longer side at most: a few kB each


def examples_of(
    own: Pool,
    others: Pool,
    windows: Windows,
    best: Sequence[int],
    done: tuple[Tensor, Tensor, Tensor],
    class_names: Sequence[str] | None,
) -> tuple[Paste, ...]:
    """Pick pastes that turned, of as many patches as there are: one of each, then a second one.

    Args:
        own: the audited images.
        others: those that windows were pasted into.
        windows: all that were.
        best: rows of those that are shown of a class, its patches in their order.
        done: the pastes, as ``(m,)`` the row of the window, ``(m,)`` the row of the image that it went into, and
            ``(m,)`` bool, whether the model then called that by the window's class.
        class_names: a name for each class.

    Returns:
        Four at most, those of the first patch first.

    """
    row, other, turned = done
    did = [(turned & (row == window)).nonzero().flatten().tolist() for window in best]
    depth = max(map(len, did), default=0)
    order = [(patch, pastes[rank]) for rank in range(depth) for patch, pastes in enumerate(did) if rank < len(pastes)]
    chosen = sorted(order[:EXAMPLES])
    pastes = torch.tensor([paste for _, paste in chosen], dtype=torch.int64, device=row.device)
    which = windows[row[pastes]]
    after = pasted(own.images[which.image], others.images[other[pastes]], which)
    return examples(others, other[pastes], after, [patch for patch, _ in chosen], class_names)


def examples(
    others: Pool, other: Tensor, after: Tensor, patch: Sequence[int], class_names: Sequence[str] | None
) -> tuple[Paste, ...]:
    """Images before and after, small.

    Args:
        others: those that were changed.
        other: ``(n,)`` int64, which of them.
        after: ``(n, C, H, W)``, what they were changed to.
        patch: by which of its class's patches each was.
        class_names: a name for each class.

    """
    before, after = (_small(images).detach().cpu().clone() for images in (others.images[other], after))
    called = [class_name(class_names, k) for k in others.prediction[other].tolist()]
    return tuple(map(Paste, patch, other.tolist(), called, before, after))


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    longest = max(height, width)
    if longest <= _SIDE:
        return images
    small = max(1, height * _SIDE // longest), max(1, width * _SIDE // longest)
    return adaptive_avg_pool2d(images.float(), small)
