"""What an audit says, in words: no more than was tested."""

from __future__ import annotations

from collections.abc import Sequence


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


def removed(name: str, effect: float, control: float, windows: int, count: int) -> str:
    """What a finding of a removal says."""
    return (
        f"Without a patch images are no longer {name!r}: filled from other images, the strongest windows of {windows} "
        f"of its {count} images change what {percent(effect)} of the images are called; windows of that size at random "
        f"places change {percent(control)}."
    )


def headline(findings: Sequence[str], tested: Sequence[str], images: int, worst: tuple[str, float, float] | None) -> str:
    """The sentence above all others.

    Args:
        findings: names of the classes with one.
        tested: names of the classes that were tested.
        images: how many images windows were taken of.
        worst: name, effect and control of the class with the largest excess.

    Example:
        >>> headline([], [], 0, None)
        'Not tested: no class could be. The notes say why.'

    """
    if not tested or worst is None:
        return "Not tested: no class could be. The notes say why."
    of = f"{len(tested)} class" + ("es" if len(tested) > 1 else "")
    if findings:
        names = ", ".join(map(repr, findings[:5])) + (f" and {len(findings) - 5} more" if len(findings) > 5 else "")
        return f"Patches of images of {names} make the model's call: {len(findings)} of {of} tested on {images} images."
    name, effect, control = worst
    return (
        f"Tested on {images} images of {of}: no window of 3/32 of an image was found that calls a class by itself. The "
        f"strongest are those of {name!r}, which turn {percent(effect)} of other images, at random places "
        f"{percent(control)}."
    )
