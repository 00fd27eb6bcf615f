"""How small a part of a patch still does it: nested windows, halving the sides, each with its control."""

from __future__ import annotations

from dataclasses import replace

import torch

from egcam_lightning.findings.interventions import Deal, Pasting, effect_of, log_odds
from egcam_lightning.findings.records import ClassRecord, Part
from egcam_lightning.findings.windows import Windows, random_windows

_WINDOWS = 3
_PASTES = 8  # fresh ones, of each window
_LEAST_SIDE = 2


def with_parts(
    record: ClassRecord, pasting: Pasting, deal: Deal, windows: Windows, generator: torch.Generator, until: int
) -> ClassRecord:
    """Paste smaller and smaller parts of a class's windows into fresh images, until these do less than half as much.

    Of the quarters of each window and its middle the one goes on that makes an image of another class most like the
    class; what that does is measured on other images.

    Args:
        record: of the class.
        pasting: does it.
        deal: deals the images that parts are pasted into.
        windows: of the class, in the order in which they were chosen; the first few serve.
        generator: draws the places of the controls.
        until: how many images may have gone through the model then.

    Returns:
        The same with what parts do; without where no passes were left for it.

    """
    # The first by the choice, not by what they did to fresh images: those that did most there did so by chance, too.
    windows = windows[:_WINDOWS]
    whole = record.capture
    group = (deal.target == record.target).nonzero().expand(len(windows), 1)[:, 0]
    found: list[Part] = []
    while whole is not None and int(torch.minimum(windows.height, windows.width).min()) >= 2 * _LEAST_SIDE:
        parts = quarters_and_middle(windows)
        if pasting.passes + (len(parts) + 2 * _PASTES) * len(windows) > until:
            break
        row, other = deal.draw(group, 1, fresh=False)
        target = torch.full_like(row, record.target)
        # All parts into the same image, so that what it is called before does not matter.
        says = torch.stack([log_odds(pasting.into_others(part[row], other), target) for part in parts])
        windows = parts[0].picked_from(parts[1:], says.argmax(0))
        control = random_windows(windows, pasting.size, generator)
        row, other = deal.draw(group, _PASTES, fresh=True)
        if not len(row):
            break
        turned, by_chance = (pasting.into_others(w[row], other).argmax(1) == record.target for w in (windows, control))
        effect = effect_of(turned, by_chance)
        found.append(Part(int(windows.height[0]), int(windows.width[0]), effect))
        if not found[-1].does_it(whole):
            break
    return replace(record, parts=tuple(found))


def quarters_and_middle(windows: Windows) -> list[Windows]:
    """Windows of half the sides: in the corners and in the middle of each.

    Example:
        >>> one = torch.tensor([8])
        >>> parts = quarters_and_middle(Windows(one * 0, one, one, one, one))
        >>> [(part.top.item(), part.left.item(), part.height.item()) for part in parts]
        [(8, 8, 4), (8, 12, 4), (12, 8, 4), (12, 12, 4), (10, 10, 4)]

    """
    height, width = windows.height // 2, windows.width // 2
    down, right = windows.height - height, windows.width - width
    steps = [(0 * down, 0 * right), (0 * down, right), (down, 0 * right), (down, right), (down // 2, right // 2)]
    return [Windows(windows.image, windows.top + dy, windows.left + dx, height, width) for dy, dx in steps]
