"""The first lines of the page: what there is to be seen, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from egcam_lightning.history.history import History
from egcam_lightning.history.records import Snapshot
from egcam_lightning.report.audit import said_first

# Measured with a tag planted in a corner: 0.98 to 0.995 from the first epoch on; in clean training 0.38 to 0.70.
SUSPICIOUS_CONSENSUS = 0.9
CLEAN_CONSENSUS = 0.75
# At most 2.5 % of the images exceed their floor by chance.
SETTLED_SHARE = 0.1
LARGE_INFIDELITY = 0.5
LARGE_FLOOR = 0.5  # where two estimates of one map hardly agree

_NOT_AUDITED = (
    "Not tested for shortcuts: the audit, which pastes patches of validation images into others, runs at the end of "
    "the fit."
)

_PLACES = (
    ("the top left corner", "the top edge", "the top right corner"),
    ("the left edge", "the centre", "the right edge"),
    ("the bottom left corner", "the bottom edge", "the bottom right corner"),
)


@dataclass(frozen=True)
class Summary:
    """What is to be seen in the last snapshot.

    Attributes:
        alarm: whether something asks for a look.
        clear: whether interventions ran that would have seen a shortcut, and saw none.
        when: which snapshot is spoken of.
        lead: the sentence that matters most.
        details: what else is known, one sentence each.

    """

    alarm: bool
    when: str
    lead: str
    details: tuple[str, ...]
    clear: bool = False

    @property
    def state(self) -> str:
        """``"alarm"``, ``"clear"``, or ``"open"``: nothing seen, which says little where nothing was tested."""
        return "alarm" if self.alarm else "clear" if self.clear else "open"


def summarise(history: History) -> Summary:
    """Put the last snapshot of a run into words.

    Args:
        history: the run.

    Returns:
        The sentences that stand at the top of the page.

    """
    if not history.snapshots:
        return Summary(False, "", "No snapshot has been taken yet.", ("Reload this page when training has begun.",))
    last = history.snapshots[-1]
    alarm, lead, reading = _where(history)
    audit = history.audit
    sentences: tuple[str, ...] = (reading, _NOT_AUDITED if audit is None else audit.sentence)
    if audit is not None and audit.findings:
        alarm, sentences = True, (*said_first(audit), lead, reading)
        lead = audit.sentence
    if not _is_empty(last):  # of empty maps nothing is faithful, lies anywhere or moves
        sentences = (*sentences, *_faithfulness(last), _on_object(history), _changes(last))
    sentences = (*sentences, _predictions(history), _still_to_come(history))
    when = "Before training" if last.when == "start" else f"Epoch {last.epoch}, step {last.step}"
    clear = audit is not None and audit.clear and not alarm
    return Summary(alarm, when, lead, tuple(s for s in sentences if s), clear)


def mean_map(attribution: Tensor) -> Tensor:
    """Average the positive parts of maps, each by its own maximum, so that every image counts the same.

    Args:
        attribution: ``(N, h, w)``, signed; of volumes ``(N, d, h, w)``, whose places are summed over depth.

    Returns:
        ``(h, w)`` in [0, 1].

    """
    positive = attribution.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    positive = positive.sum(1) if positive.ndim == 4 else positive
    peak = positive.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (positive / peak).mean(0)


def place(heat: Tensor) -> str | None:
    """Name the ninth of the picture in which most of a map lies.

    Args:
        heat: ``(h, w)``, not negative.

    Returns:
        Words such as ``"the top left corner"``; ``None`` where the map is empty or spread over the picture.

    Example:
        >>> import torch
        >>> place(torch.eye(9)[:1].T @ torch.eye(9)[:1])
        'the top left corner'

    """
    # Through a grid that both sides divide evenly, so that a 7 x 7 map is shared out among the ninths by area.
    fine = heat.repeat_interleave(3, 0).repeat_interleave(3, 1)[None]
    ninths = adaptive_avg_pool2d(fine, (3, 3))[0]
    total = float(ninths.sum())
    # An even map has 0.11 in each ninth.
    if total <= 0 or float(ninths.max()) < 0.22 * total:
        return None
    row, column = divmod(int(ninths.argmax()), 3)
    return _PLACES[row][column]


def _is_empty(snapshot: Snapshot) -> bool:
    """Whether a trained model's maps have nothing positive in them, any of them."""
    return snapshot.when != "start" and snapshot.metrics.get("degenerate") == 1


def _where(history: History) -> tuple[bool, str, str]:
    snapshot = history.snapshots[-1]
    if _is_empty(snapshot):
        lead = "Nothing in the pictures speaks for the explained classes: every map is empty."
        causes = "A model that answers every picture alike does this, as after training has diverged: look at the loss."
        return True, lead, f"{causes} Where it predicts well, maps of another layer may show more."
    consensus = snapshot.metrics.get("consensus")
    where = place(mean_map(snapshot.attribution))
    if consensus is None:
        at = f"most often at {where}" if where else "at no one place in particular"
        return (
            False,
            f"Over all pictures the model looks {at}.",
            "Consensus, how alike the maps of different classes are, is not known: it needs maps of two classes.",
        )
    value = f"Consensus is {consensus:.2f}"
    scale = "(1 is the same map for every class; clean training was measured at 0.4 to 0.7, shortcuts at 0.98 and more)"
    if snapshot.when == "start":
        return False, "This is the model before training: its maps mean little yet.", f"{value} {scale}."
    if consensus >= SUSPICIOUS_CONSENSUS:
        lead = "The model looks at the same place in every picture, whatever it shows"
        lead = f"{lead}: {where}." if where else f"{lead}, or at all places alike."
        if _looks_at_objects(history):
            return False, lead, f"{value} {scale}. The marked objects are there, so this need not be a shortcut."
        causes = "A tag, a frame or a watermark does this, and so do objects that are always in the same place."
        return True, lead, f"{value} {scale}. {causes}"
    if consensus >= CLEAN_CONSENSUS:
        at = f", most often at {where}" if where else ""
        lead = f"The model looks at similar places in pictures of different classes{at}."
        return False, lead, f"{value} {scale}: between the two, so look at the pictures."
    return (
        False,
        "The model looks at different places in different pictures.",
        f"{value} {scale}. A shortcut of one class, or one that moves, does not show in it.",
    )


def _faithfulness(snapshot: Snapshot) -> list[str]:
    sentences = []
    gap = snapshot.metrics.get("completeness_gap")
    if gap is not None:
        account = "" if gap <= 0.1 else "are a rough account: they " if gap <= 0.3 else "need care: they "
        sentences.append(f"The maps {account}add up to the score but for {_percent(gap)} (completeness gap).")
    floor = _noise_floor(snapshot)
    if floor > LARGE_FLOOR:
        sentences.append(
            f"Where they lie is unsure: with other baselines they differ by {floor:.2f} (noise floor; 0: the same map)."
            " `num_baselines=16, num_samples=64` make them steadier."
        )
    infidelity = snapshot.metrics.get("infidelity")
    if infidelity is not None and infidelity >= LARGE_INFIDELITY:
        sentences.append(
            f"They foretell badly what blurring a part of the picture does (infidelity {infidelity:.2f}; 1 is no "
            "better than an empty map)."
        )
    empty = snapshot.metrics.get("degenerate")
    if empty:
        sentences.append(f"{_percent(empty)} of the maps are empty: nothing speaks for the explained class.")
    off_grid = snapshot.metrics.get("off_grid")
    if off_grid is not None and off_grid >= 0.05:
        sentences.append(f"{_percent(off_grid)} of the attribution has no place on the image: the maps show the rest.")
    return sentences


def _noise_floor(snapshot: Snapshot) -> float:
    floor = snapshot.metrics.get("drift/noise_floor")
    return 0.0 if floor is None else floor


def _on_object(history: History) -> str:
    mass = history.snapshots[-1].metrics.get("relevance_mass")
    if mass is None:
        return ""
    share = _object_share(history)
    lies = f"{_percent(mass)} of the relevance lies on the marked object"
    if share is None:
        return f"{lies}."
    less = ", and an even map would put more on it" if mass < share else ""
    return f"{lies}, which fills {_percent(share)} of the {'volume' if history.probe.depth else 'picture'}{less}."


def _looks_at_objects(history: History) -> bool:
    mass, share = history.snapshots[-1].metrics.get("relevance_mass"), _object_share(history)
    return mass is not None and share is not None and mass >= min(0.5, 2 * share)


def _object_share(history: History) -> float | None:
    masks = history.probe.masks
    return None if masks is None else masks.float().mean().item()


def _changes(snapshot: Snapshot) -> str:
    share = snapshot.metrics.get("drift/significant")
    if share is None:
        return ""
    if share > SETTLED_SHARE:
        state = "Where it looks is still changing"
    elif _noise_floor(snapshot) > LARGE_FLOOR:
        state = "Whether it looks elsewhere cannot be told from noise"
    else:
        state = "Where it looks has settled"
    return f"{state}: since the previous snapshot {_percent(share)} of the maps moved by more than noise."


def _still_to_come(history: History) -> str:
    """What a young run cannot say yet."""
    if len(history) > 2 or "drift/previous" in history.snapshots[-1].metrics:
        return ""
    return "Whether the maps change is not known yet: that takes the snapshots of two epochs. Reload this page then."


def _predictions(history: History) -> str:
    labels, prediction = history.probe.labels, history.snapshots[-1].prediction.cpu()
    if labels is None or bool((prediction < 0).all()):
        return ""
    wrong = int((prediction != labels.cpu()).sum())
    return f"{wrong or 'None'} of the {len(labels)} pictures {'is' if wrong < 2 else 'are'} predicted wrong."


def _percent(value: float) -> str:
    return "less than 1 %" if 0 < value < 0.01 else f"{100 * value:.0f} %"
