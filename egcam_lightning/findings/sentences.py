"""What an audit says, in words: no more than was tested."""

from __future__ import annotations

from collections.abc import Sequence

from egcam_lightning.findings.kinds import EXPECTED_EXCESS, doubt

# The mean of fewer images than these still shows each of them, and not what they have in common.
LEAST_IN_COMMON = 16


# Said wherever there is no finding: an all-clear is of this, and of nothing else.
TRIED = (
    "Tried were windows of a tenth of an image, and of each class its borders, its colours, what its images have in "
    "common and what they repeat; a texture, blur or noise was not."
)


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


# What turns images: by one word, in a sentence, and what it is compared with.
_SOURCES = {
    "capture": ("a patch", "windows of its images turn", "windows at random places"),
    "border": ("a border", "the borders of its images turn", "those of other classes"),
    "colour": ("a colouring", "the colours of its images turn", "those of other classes"),
    "overlay": ("a common trait", "what its images have in common, doubled, turns", "what those of other classes have"),
    "repeat": ("a repeated piece", "a piece that its images repeat turns", "what others hold there"),
}


def spread(kind: str, name: str, effect: float, control: float, count: int) -> str:
    """What a finding says of something that is spread over images.

    Example:
        >>> spread("border", "ship", 0.67, 0.02, 48)
        "A border alone makes other images 'ship': the borders of its images turn 67 % of 48 images of other ..."

    """
    word, turns, beside = _SOURCES[kind]
    return (
        f"{_capital(word)} alone makes other images {name!r}: {turns} {percent(effect)} of {count} images of other "
        f"classes; {beside}, {percent(control)}."
    )


def most(kind: str, name: str, effect: float, control: float) -> str:
    """What is said of the largest excess of all.

    Example:
        >>> most("capture", "ship", 0.24, 0.02)
        "Largest for 'ship': windows of its images turn 24 % of other images into it; windows at random places, 2 %."

    """
    _, turns, beside = _SOURCES[kind]
    return f"Largest for {name!r}: {turns} {percent(effect)} of other images into it; {beside}, {percent(control)}."


def turned_by(kind: str) -> dict[str, str]:
    """What turned images and what it is compared with, as ``title`` and ``beside``.

    Example:
        >>> turned_by("border")
        {'title': 'The borders of its images turn', 'beside': 'those of other classes'}

    """
    _, turns, beside = _SOURCES[kind]
    return {"title": _capital(turns), "beside": beside}


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def headline(
    found: Sequence[tuple[str, str]],
    tested: int,
    images: int,
    largest: tuple[str, str, float, float] | None,
    *,
    enough: bool,
) -> str:
    """The sentence above all others.

    Args:
        found: the findings, as the class's name and the kind.
        tested: how many classes were tested.
        images: how many images windows were taken of.
        largest: of what speaks most against an all-clear the kind, the class's name, effect and control.
        enough: whether an excess of 0.2 would have been told from chance in each class.

    Example:
        >>> headline([], 0, 0, None, enough=False)
        'Not tested: no class could be. The notes say why.'

    """
    if not tested or largest is None:
        return "Not tested: no class could be. The notes say why."
    of = f"{tested} class" + ("es" if tested > 1 else "")
    if found:
        classes = list(dict.fromkeys(name for name, _ in found))
        names = ", ".join(map(repr, classes[:5])) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        kinds = [kind for kind in _SOURCES if kind in {kind for _, kind in found}]
        what = " or ".join(_SOURCES[kind][0] for kind in kinds)
        return (
            f"Is it the object, or a shortcut? {_capital(what)} alone makes other images {names}: a finding in "
            f"{len(classes)} of {of}, tested on {images} images. Look what it shows."
        )
    kind, _, effect, control = largest
    said = most(*largest)
    where = f"{images} images of {of} were tested"
    if not enough:
        return (
            f"Not tested well enough: {where}, too few to see what turns {percent(EXPECTED_EXCESS)} of other images. "
            f"More images of each class are needed. {said}"
        )
    if doubt(kind, effect - control) >= 1:
        return f"No finding, and no all-clear: {where}, and something does more than chance. {said}"
    return (
        f"Nothing was found that turns {percent(EXPECTED_EXCESS)} of other images into a class: {where}. {said} {TRIED}"
    )
