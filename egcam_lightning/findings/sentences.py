"""What an audit says, in words: no more than was tested."""

from __future__ import annotations

from collections.abc import Sequence

# What a test must be able to see before its silence says anything: more than windows at random places by so much.
EXPECTED_EXCESS = 0.2


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.762)
        '76 %'

    """
    return f"{100 * share:.0f} %"


def captured(name: str, effect: float, control: float, windows: int, count: int, strong: int) -> str:
    """What a finding of a capture says."""
    return (
        f"A patch alone makes other images {name!r}: the strongest windows of {windows} of its {count} images turn "
        f"{percent(effect)} of the images of other classes that they are pasted into; windows of that size at random "
        f"places turn {percent(control)}. {strong} of the {windows} turn more than half."
    )


def smaller(size: tuple[int, int], effect: float, control: float, *, does_it: bool) -> str:
    """What a finding says of a part of its patches.

    Example:
        >>> smaller((6, 6), 0.41, 0.03, does_it=True)
        'A part of 6x6 pixels still turns 41 %; at random places, 3 %.'

    """
    what = f"of {size[0]}x{size[1]} pixels"
    at_random = f"at random places, {percent(control)}."
    if does_it:
        return f"A part {what} still turns {percent(effect)}; {at_random}"
    return f"It takes more than a part {what}, which turns {percent(effect)}; {at_random}"


def removed(name: str, effect: float, control: float, windows: int, count: int) -> str:
    """What a finding of a removal says."""
    return (
        f"Without a patch images are no longer {name!r}: filled from other images, the strongest windows of {windows} "
        f"of its {count} images change what {percent(effect)} of the images are called; windows of that size at random "
        f"places change {percent(control)}."
    )


def headline(
    found: Sequence[str], tested: int, images: int, worst: tuple[str, float, float] | None, sees: float
) -> str:
    """The sentence above all others.

    Args:
        found: names of the classes with a finding.
        tested: how many classes were tested.
        images: how many images windows were taken of.
        worst: name, effect and control of the class with the largest excess.
        sees: the smallest excess that would have been told from chance.

    Example:
        >>> headline([], 0, 0, None, 1.0)
        'Not tested: no class could be. The notes say why.'

    """
    if not tested or worst is None:
        return "Not tested: no class could be. The notes say why."
    of = f"{tested} class" + ("es" if tested > 1 else "")
    if found:
        names = ", ".join(map(repr, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        return (
            f"A patch alone makes other images {names}: a finding in {len(found)} of {of}, tested on {images} images."
            " Look what the patches show: where it is the object itself, this is as it should be."
        )
    name, effect, control = worst
    most = (
        f"The most are those of {name!r}: they turn {percent(effect)} of the images that they are pasted into, windows "
        f"at random places {percent(control)}."
    )
    where = f"{images} images of {of} were tested"
    if sees > EXPECTED_EXCESS:
        return (
            f"Not tested well enough: {where}, too few to see a patch that turns {percent(EXPECTED_EXCESS)} of other "
            f"images. More images of each class are needed. {most}"
        )
    if effect - control >= EXPECTED_EXCESS:
        return f"No finding, and no all-clear: {where}, and some windows do more than chance. {most}"
    return (
        f"No window of 3/32 of an image was found that turns {percent(EXPECTED_EXCESS)} of other images into its "
        f"class: {where}. {most} What is spread over the whole image (a frame, a colour cast, a watermark) no window "
        "carries: that was not tested."
    )
