"""What an audit found, as plain values: findings, the classes that they are of, and what was tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from egcam_lightning.findings.kinds import EXPECTED_EXCESS, doubt, weight
from egcam_lightning.findings.rows import row_of
from egcam_lightning.findings.sentences import LEAST_IN_COMMON
from egcam_lightning.metrics.faithfulness import Estimate
from egcam_lightning.notebook import stretch, strip


@dataclass(frozen=True, eq=False)
class Patch:
    """A window of an audited image that was pasted into others.

    Attributes:
        image: the row of the image among those audited.
        top: its first row of pixels.
        left: its first column.
        pixels: ``(C, h, w)``, what it shows, as the model takes images.
        share: of the images that it was pasted into, how many the model then calls by its class.

    """

    image: int
    top: int
    left: int
    pixels: Tensor
    share: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True, eq=False)
class Finding:
    """Something that an intervention says of a class: what patches of its images do to others, or their loss to it.

    Attributes:
        target: the class.
        class_name: its name, its number where none is known.
        kind: ``"capture"``: patches turn images of other classes into the class; ``"border"``,
            ``"colour"``, ``"overlay"`` and ``"repeat"``: what its images share does, see :class:`Spread`;
            ``"removal"``: without the patches images are no longer the class.
        effect: the share of the images that turned.
        control: the same with windows of the same size at random places of the same images; of what is spread, with
            the same of other classes' images; of a repeated piece, with what these hold at its place.
        interval: 95 % interval of ``effect - control``.
        num_images: images of the class that were looked at.
        patches: those that did it, the strongest first; of what is spread there are none.
        sentence: all of it in words.

    """

    target: int
    class_name: str
    kind: str
    effect: float
    control: float
    interval: tuple[float, float]
    num_images: int
    patches: tuple[Patch, ...]
    sentence: str

    @property
    def excess(self) -> float:
        """What the patches do more than windows at random places."""
        return self.effect - self.control


@dataclass(frozen=True)
class Effect:
    """What an intervention does, beside its control.

    Attributes:
        effect: share of the images that turned.
        control: share that turned with windows at random places.
        interval: 95 % interval of the difference.
        chance: how often chance alone makes such a difference, one-sided.
        pastes: how many images were made for each of the two.

    """

    effect: float
    control: float
    interval: tuple[float, float]
    chance: float
    pastes: int

    @property
    def excess(self) -> float:
        """The difference."""
        return self.effect - self.control


@dataclass(frozen=True)
class Part:
    """What a smaller part of a class's strongest windows does.

    Attributes:
        height: in pixels, of the part of the first window; those of others may lie or stand.
        width: likewise.
        capture: what such parts do to fresh images of other classes, beside windows of their size at random places.

    """

    height: int
    width: int
    capture: Effect

    def does_it(self, whole: Effect) -> bool:
        """Whether it does half as much as the whole, at least, and more than chance would have it."""
        return self.capture.excess >= whole.excess / 2 and self.capture.interval[0] > 0


@dataclass(frozen=True, eq=False)
class Paste:
    """An image of another class that a patch turned, as an example.

    Attributes:
        patch: which of the class's patches.
        image: the row of the image among those that were pasted into.
        called: the name of the class that the model calls it by before.
        before: ``(C, h, w)``, the image, of 32 pixels a side at most, as the model takes images.
        after: the same with the patch in it.

    """

    patch: int
    image: int
    called: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """What something that a class's images share does to other images.

    Attributes:
        kind: ``"border"``: the border of an image; ``"colour"``: its colours, as mean and covariance; ``"overlay"``:
            what the class's images have in common, the difference of their mean from that of the others, doubled;
            ``"repeat"``: a piece that three of its images hold, wherever it lies.
        capture: what it does to images of other classes, beside the same of other classes' images; of a piece, beside
            what these hold at its place.
        pastes: some of the images that turned; their ``patch`` is 0.

    """

    kind: str
    capture: Effect
    pastes: tuple[Paste, ...] = ()


@dataclass(frozen=True, eq=False)
class ClassRecord:
    """What an audit knows of a class.

    Attributes:
        target: the class.
        class_name: its name, its number where none is known.
        num_images: its images.
        num_right: those that the model predicts as it, of which windows were taken.
        mean_map: ``(h, w)``, the mean of their maps' positive parts, each by its own maximum.
        likeness: how alike their maps are, as a mean correlation; NaN of fewer than two.
        likeness_to_others: the same with the maps of other classes.
        capture: what their strongest windows do to images of other classes; ``None`` where that was not tested.
        removal: what filling them does to their own images; ``None`` likewise.
        patches: the strongest windows.
        pastes: some of the images that these turned.
        parts: what smaller parts of the strongest windows do, the largest first; of classes with a finding.
        spread: what is spread over its images does, where that was measured: of each kind for the classes whose images
            did most where it was tried.
        num_windows: how many windows were tested.
        num_strong: those of them that turned more than half of what they were pasted into.
        why_not: why nothing was tested; empty where it was.

    """

    target: int
    class_name: str
    num_images: int
    num_right: int
    mean_map: Tensor
    likeness: float
    likeness_to_others: float = float("nan")
    capture: Effect | None = None
    removal: Effect | None = None
    patches: tuple[Patch, ...] = ()
    pastes: tuple[Paste, ...] = ()
    parts: tuple[Part, ...] = ()
    spread: tuple[Spread, ...] = ()
    num_windows: int = 0
    num_strong: int = 0
    why_not: str = ""

    @property
    def tested(self) -> bool:
        """Whether anything was pasted."""
        return self.capture is not None

    @property
    def captures(self) -> tuple[tuple[str, Effect], ...]:
        """What turned images of other classes into this one, by kind, what counts most first."""
        windows = () if self.capture is None else (("capture", self.capture),)
        found = (*windows, *((one.kind, one.capture) for one in self.spread))
        return tuple(sorted(found, key=lambda one: -weight(one[0], one[1].excess)))

    @property
    def excess(self) -> float:
        """The largest of a capture; NaN where nothing was tested."""
        return max((effect.excess for _, effect in self.captures), default=float("nan"))

    @property
    def weight(self) -> float:
        """What counts most of what turned images into this class: a finding's is above 1; NaN likewise."""
        return max((weight(kind, effect.excess) for kind, effect in self.captures), default=float("nan"))

    @property
    def smallest_part(self) -> Part | None:
        """The smallest part that still does it; ``None`` where none does, or none was tried."""
        whole = self.capture
        return None if whole is None else next((p for p in reversed(self.parts) if p.does_it(whole)), None)


@dataclass(frozen=True)
class Tested:
    """What an audit has tested, and what it could have seen.

    Attributes:
        num_images: images that windows were taken of.
        classes: names of the classes that were tested.
        left_out: names of those that were not.
        pastes: images with a window in them that count for the class with the fewest, and as many for its control.
        sees: the smallest excess that is told from chance (at 5 %) in each tested class, four times in five.
        enough: whether that is 0.2 or less, no class was left out, and each has images enough to see what they have in
            common.

    """

    num_images: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    pastes: int
    sees: float
    enough: bool


@dataclass(frozen=True, eq=False)
class AuditRecord:
    """What an audit found, and what it tested.

    Iterating gives the findings, and ``len`` how many there are.

    Attributes:
        findings: what passed its test, the largest excess first.
        classes: one record a class that has images, those first whose effects count for most.
        num_images: images audited.
        layer: whose maps were used; empty where nothing was tested.
        sees: the smallest excess that is told from chance (at 5 %) in each tested class, four times in five.
        sentence: the headline: what was tested, on how many images, and what was found.
        notes: what else there is to say, one sentence each.
        passes: images that went through the model for the interventions.
        faithfulness: how faithful the maps of some of the images are, with intervals; empty where it was not asked for.

    """

    findings: tuple[Finding, ...]
    classes: tuple[ClassRecord, ...]
    num_images: int
    layer: str
    sees: float
    sentence: str
    notes: tuple[str, ...] = ()
    passes: int = 0
    faithfulness: tuple[Estimate, ...] = ()

    @property
    def tested(self) -> Tested:
        """What was tested, on how many images, and what could have been seen."""
        tested = [c for c in self.classes if c.capture is not None]
        left_out = tuple(c.class_name for c in self.classes if c.capture is None)
        return Tested(
            num_images=sum(c.num_right for c in tested),
            classes=tuple(c.class_name for c in tested),
            left_out=left_out,
            pastes=min((c.capture.pastes for c in tested if c.capture is not None), default=0),
            sees=self.sees,
            enough=not left_out and enough_tested(tested, self.sees),
        )

    @property
    def clear(self) -> bool:
        """Whether there is an all-clear: enough was tested to see an excess of 0.2, and no class has one."""
        doubts = (doubt(kind, effect.excess) for c in self.classes for kind, effect in c.captures)
        return self.tested.enough and max(doubts, default=0.0) < 1 and not self.findings

    def rows(self) -> list[dict[str, Any]]:
        """A row a class, for ``pandas.DataFrame``; ``None`` for what was not tested."""
        found = {finding.target for finding in self.findings}
        return [row_of(record, finding=record.target in found) for record in self.classes]

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint may hold: tensors, numbers, strings and lists of them; :meth:`from_state` undoes it."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(AuditRecord)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AuditRecord:
        """Undo :meth:`to_state`."""
        values = dict(state)
        values["findings"] = tuple(
            Finding(**{**f, "interval": tuple(f["interval"]), "patches": _patches(f["patches"])})
            for f in state["findings"]
        )
        values["classes"] = tuple(
            ClassRecord(
                **{
                    **c,
                    "capture": _effect(c["capture"]),
                    "removal": _effect(c["removal"]),
                    "patches": _patches(c["patches"]),
                    "pastes": tuple(Paste(**one) for one in c.get("pastes", ())),
                    "spread": tuple(map(_spread, c.get("spread", ()))),
                    "parts": tuple(Part(**{**one, "capture": _effect(one["capture"])}) for one in c.get("parts", ())),
                }
            )
            for c in state["classes"]
        )
        values["notes"] = tuple(state["notes"])
        values["faithfulness"] = tuple(Estimate(**one) for one in state.get("faithfulness", ()))
        return AuditRecord(**values)

    def _repr_html_(self) -> str:
        """The headline, the findings and the strongest patches, for notebooks."""
        patches = [(one.class_name, patch) for one in self.findings for patch in one.patches]
        captions = [f"{name}: {patch.share:.0%} turn" for name, patch in patches]
        sentences = [one.sentence for one in self.findings]
        return strip(self.sentence, [stretch(patch.pixels) for _, patch in patches], captions, sentences)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """An audit without findings is still one; ask ``findings``."""
        return True


def enough_tested(tested: Sequence[ClassRecord], sees: float) -> bool:
    """Whether an excess of 0.2 would have been seen in each of some classes, also of what its images have in common."""
    return bool(tested) and sees <= EXPECTED_EXCESS and all(c.num_images >= LEAST_IN_COMMON for c in tested)


def class_name(names: Sequence[str] | None, target: int) -> str:
    """A class's name, its number where none is known."""
    return str(names[target]) if names is not None and 0 <= target < len(names) else str(target)


def _plain(value: Any) -> Any:
    """A value as dictionaries, lists, tensors, numbers and strings."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _patches(state: list[dict[str, Any]]) -> tuple[Patch, ...]:
    return tuple(Patch(**one) for one in state)


def _effect(state: dict[str, Any] | None) -> Effect | None:
    return None if state is None else Effect(**{**state, "interval": tuple(state["interval"])})


def _spread(state: dict[str, Any]) -> Spread:
    parts = {"capture": _effect(state["capture"]), "pastes": tuple(Paste(**one) for one in state["pastes"])}
    return Spread(**{**state, **parts})
