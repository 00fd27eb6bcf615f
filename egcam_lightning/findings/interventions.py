"""Interventions: images with something put into them, and what the model then says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from egcam_lightning.explain.chunking import Chunks, images_at_once
from egcam_lightning.findings.records import Effect
from egcam_lightning.findings.shares import difference_interval, fisher
from egcam_lightning.findings.sharing import Workers
from egcam_lightning.findings.windows import Windows, pasted

Classify = Callable[[Tensor], Tensor]
"""From images ``(n, C, H, W)`` to logits ``(n, classes)`` in float32."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Images, and what the model says of them.

    Attributes:
        images: ``(N, C, H, W)``.
        logits: ``(N, classes)``.
        label: ``(N,)`` int64, their classes; what is predicted, where these are not known.

    """

    images: Tensor
    logits: Tensor
    label: Tensor

    @property
    def prediction(self) -> Tensor:
        """``(N,)`` int64."""
        return self.logits.argmax(1)

    @classmethod
    def of(cls, classify: Classify, images: Tensor, label: Tensor | None, chunks: Chunks, workers: Workers) -> Pool:
        """Ask the model."""

        def ask(rows: Tensor) -> Tensor:
            rows = rows.to(images.device)
            return in_chunks(lambda part: classify(images[rows[part]]), len(rows), images, chunks)

        logits = workers.share(ask, len(images))
        return cls(images, logits, logits.argmax(1) if label is None else label)


def in_chunks(work: Callable[[slice], Tensor], count: int, images: Tensor, chunks: Chunks) -> Tensor:
    """Rows that work gives for ``count`` images such as these, a chunk at a time."""
    parts: list[Tensor] = []
    chunks.run(count, images_at_once(images), lambda rows: parts.append(work(rows)))
    return torch.cat(parts)


class Pasting:
    """Pastes windows between two pools at the same place, and asks the model what it sees.

    Args:
        classify: the model.
        own: the images that are audited.
        others: those that windows are pasted into.
        chunks: what goes through the model at once.
        workers: those who share it.

    Attributes:
        passes: images that went through the model so far, in all processes.

    """

    def __init__(self, classify: Classify, own: Pool, others: Pool, chunks: Chunks, workers: Workers) -> None:
        self._classify = classify
        self._own = own
        self._others = others
        self._chunks = chunks
        self._workers = workers
        self.passes = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._own.images.shape[2], self._own.images.shape[3]

    def into_others(self, windows: Windows, other: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of the others, each with a window of one's own in it."""
        return self._run(self._own.images, windows.image, self._others.images, other, windows)

    def out_of_own(self, windows: Windows, other: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of one's own images, each with a window filled from another."""
        return self._run(self._others.images, other, self._own.images, windows.image, windows)

    def changed(self, other: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Logits ``(n, classes)`` of the others ``(n,)``, changed.

        Args:
            other: which images.
            change: from ``(m,)`` int64 rows of these, and their images ``(m, C, H, W)``, to the images that are asked.

        """
        return self._ask(self._others.images, other, change)

    def _run(self, source: Tensor, source_row: Tensor, onto: Tensor, onto_row: Tensor, windows: Windows) -> Tensor:
        return self._ask(onto, onto_row, lambda rows, images: pasted(source[source_row[rows]], images, windows[rows]))

    def _ask(self, onto: Tensor, onto_row: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        self.passes += len(onto_row)

        def ask(mine: Tensor) -> Tensor:
            mine = mine.to(onto_row.device)

            def one(part: slice) -> Tensor:
                rows = mine[part]
                return self._classify(change(rows, onto[onto_row[rows]]))

            return in_chunks(one, len(mine), onto, self._chunks)

        return self._workers.share(ask, len(onto_row))


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """``(n,)``: of a class against all others.

    Example:
        >>> log_odds(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([2.])

    """
    rest = logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, target[:, None])[:, 0] - rest


def effects_by(group: Tensor, turned: Tensor, control: Tensor, groups: int) -> list[Effect | None]:
    """What an intervention did, by group.

    Args:
        group: ``(m,)`` int64, which group each paste is of.
        turned: ``(m,)`` bool, whether it turned its image.
        control: ``(m,)`` bool, whether a window at a random place did.
        groups: how many groups there are.

    Returns:
        One a group; ``None`` for those without any.

    """
    counts = torch.bincount(group, minlength=groups).tolist()
    hits = torch.bincount(group[turned], minlength=groups).tolist()
    other = torch.bincount(group[control], minlength=groups).tolist()
    return [_effect(*numbers) if numbers[2] else None for numbers in zip(hits, other, counts, strict=True)]


def effect_of(turned: Tensor, control: Tensor) -> Effect:
    """What an intervention did to ``(m,)`` images, at least one: see :func:`effects_by`.

    Example:
        >>> effect_of(torch.tensor([True, True]), torch.tensor([False, True])).excess
        0.5

    """
    return _effect(int(turned.sum()), int(control.sum()), len(turned))


def _effect(hits: int, other: int, count: int) -> Effect:
    interval = difference_interval(hits, count, other, count)
    return Effect(hits / count, other / count, interval, fisher(hits, count, other, count), count)


class Deal:
    """Deals images of other classes, in two halves: some to choose windows by, others to measure them on.

    Windows that are chosen because they turned images turn the same images again; what they do to fresh ones is not
    biased by the choice.

    Args:
        target: ``(k,)`` int64, the classes that are audited.
        others: the images that are dealt: those that neither are of the class nor are predicted as it.
        generator: shuffles them, on the CPU.

    Attributes:
        target: ``(k,)``, the classes.
        available: ``(k,)``, how many images there are for each class, in both halves.

    """

    def __init__(self, target: Tensor, others: Pool, generator: torch.Generator) -> None:
        self.target = target
        fits = (others.label != target[:, None]) & (others.prediction != target[:, None])
        self.available = fits.sum(1)
        self._generator = generator
        chance = torch.rand(fits.shape, generator=generator).to(fits.device)
        place = chance.masked_fill(~fits, 2.0).argsort(1).argsort(1)
        first = place < (self.available // 3)[:, None]
        self._halves = (fits & first, fits & ~first)

    def draw(self, group: Tensor, count: int, *, fresh: bool) -> tuple[Tensor, Tensor]:
        """Deal up to ``count`` different images to each of some windows.

        Args:
            group: ``(n,)``, which of the classes each window is of.
            count: how many.
            fresh: from which half.

        Returns:
            Pairs, as ``(m,)`` the row of the window and ``(m,)`` the row of the image.

        """
        fits = self._halves[fresh][group]
        chance = torch.rand(fits.shape, generator=self._generator).to(fits.device).masked_fill(~fits, -1.0)
        value, row = chance.topk(min(count, fits.shape[1]), 1)
        window, column = (value >= 0).nonzero(as_tuple=True)
        return window, row[window, column]
