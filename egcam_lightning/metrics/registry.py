"""Every number that is logged, in one table: its metric, whether it is a default, and what the page says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torchmetrics import Metric

from egcam_lightning import metrics as m


@dataclass(frozen=True)
class Facts:
    """What a reader of the page needs to know of one number.

    Attributes:
        title: its name in words.
        arrow: ``"↑"`` or ``"↓"`` where one way is better, else empty.
        reading: how to read it, in a few words.
        hint: one line that says what it is.
        high: the top of its axis where it has one that means something, else ``None``.

    """

    title: str
    arrow: str = ""
    reading: str = ""
    hint: str = ""
    high: float | None = None


@dataclass(frozen=True)
class Number(Facts):
    """A number that is logged.

    Attributes:
        metric: its metric; ``None`` where every snapshot has it anyway.
        default: whether the metric is evaluated by default (with masks, where it needs them).
        compares: whether it is measured against an earlier snapshot.
        audited: whether it comes from an audit, of which a snapshot has none unless ``audit_every`` says so.

    """

    metric: type[Metric] | None = None
    default: bool = False
    compares: bool = False
    audited: bool = False


def needs_masks(metric: Metric | type[Metric] | None) -> bool:
    """Whether a metric measures against masks of the objects."""
    return bool(getattr(metric, "needs_masks", False))


_LOWER, _HIGHER = ("↓", "lower is better"), ("↑", "higher is better")

_STEADY = ("", "lower is steadier")


# In the order in which the page shows them.
NUMBERS: dict[str, Number] = {
    "consensus": Number(
        "Consensus",
        "",
        "near 1 is suspicious",
        "How alike the maps of different classes are. Near 1: one place, whatever the picture shows.",
        1.0,
        metric=m.ExplanationConsensus,
        default=True,
    ),
    "recurrence": Number(
        "Recurrence",
        "",
        "higher than in other runs is suspicious",
        "How well each map is matched by that of some image of another class. Near 1: a few places, whatever is shown.",
        1.0,
        metric=m.ExplanationRecurrence,
        default=True,
    ),
    "consensus_null": Number(
        "Consensus of the objects",
        "",
        "",
        "The consensus of maps lying evenly on the marked objects.",
        1.0,
    ),
    "completeness_gap": Number(
        "Completeness gap", *_LOWER, "How far the maps are from adding up to the score that they explain; 0 is exact."
    ),
    "drift/previous": Number(
        "Drift since the previous snapshot",
        *_STEADY,
        "1 minus the rank correlation. Inside the band it is noise.",
        compares=True,
    ),
    "drift/reference": Number(
        "Drift since the first epoch",
        *_STEADY,
        "1 minus the rank correlation. Inside the band it is noise.",
        compares=True,
    ),
    "drift/significant": Number(
        "Significant drift",
        *_STEADY,
        "Share of the images that moved by more than their own noise floor.",
        1.0,
        compares=True,
    ),
    "capture/excess": Number(
        "Capture, more than at random",
        *_LOWER,
        "The largest share, over classes, of other images that a patch of the class (or its border, its colours, "
        "what its images have in common or repeat) alone turns into it, minus that of patches at random places or of "
        "other classes.",
        1.0,
        audited=True,
    ),
    "capture/weight": Number(
        "Capture, against a finding's",
        *_LOWER,
        "What counts most of that, whatever turned the images: above 1 it is a finding, but for what chance may do.",
        audited=True,
    ),
    "capture/max": Number(
        "Capture",
        *_LOWER,
        "The largest share, over classes, of other images that a patch of the class (or its border, its colours, "
        "what its images have in common or repeat) alone turns into it.",
        1.0,
        audited=True,
    ),
    "relevance_mass": Number(
        "Relevance mass",
        *_HIGHER,
        "Share of the positive relevance that lies on the marked object.",
        1.0,
        metric=m.RelevanceMass,
        default=True,
    ),
    "pointing_game": Number(
        "Pointing game",
        *_HIGHER,
        "Share of the images whose hottest point lies on the marked object.",
        1.0,
        metric=m.PointingGame,
        default=True,
    ),
    "infidelity": Number(
        "Infidelity",
        *_LOWER,
        "Error in foretelling what hiding a block does to the score: 0 is perfect, 1 is no better than an empty map.",
        1.0,
        metric=m.Infidelity,
        default=True,
    ),
    "insertion_auc": Number(
        "Insertion AUC",
        *_HIGHER,
        "Area under the curve (AUC): the mean score while pixels are put in, the most relevant first.",
        1.0,
        metric=m.InsertionAUC,
        default=True,
    ),
    "deletion_auc": Number(
        "Deletion AUC",
        *_LOWER,
        "Area under the curve (AUC): the mean score while pixels are taken out, the most relevant first.",
        1.0,
        metric=m.DeletionAUC,
        default=True,
    ),
    "max_sensitivity": Number(
        "Maximum sensitivity",
        *_LOWER,
        "Largest relative change of the map in a small ball around the image.",
        metric=m.MaxSensitivity,
    ),
    "complexity": Number(
        "Complexity",
        "",
        "lower is more compact",
        "Entropy of the map: 0 is one cell, 1 is all cells alike.",
        1.0,
        metric=m.Complexity,
        default=True,
    ),
    "sparseness": Number(
        "Sparseness",
        "",
        "higher is more compact",
        "Gini index of the map: 0 is all cells alike, 1 is one cell.",
        1.0,
        metric=m.Sparseness,
        default=True,
    ),
    "prediction_changed": Number(
        "Predictions changed",
        *_STEADY,
        "Share of the images predicted otherwise than at the previous snapshot.",
        1.0,
        compares=True,
    ),
    "drift/noise_floor": Number(
        "Noise floor of drift", *_LOWER, "Drift that sampling alone can produce; the band in the drift charts."
    ),
    "drift/ssim": Number(
        "Drift of structure",
        *_STEADY,
        "1 minus the structural similarity to the previous snapshot.",
        compares=True,
    ),
    "drift/top_iou": Number(
        "Drift of the hottest fifth",
        *_STEADY,
        "1 minus the overlap of the hottest fifth with the previous one.",
        1.0,
        compares=True,
    ),
    "drift/centre_shift": Number(
        "Shift of the centre",
        *_STEADY,
        "How far the centre of relevance moved, as a share of the diagonal.",
        compares=True,
    ),
    "degenerate": Number("Empty maps", *_LOWER, "Share of the maps that have nothing positive.", 1.0),
    "off_grid": Number(
        "Off the grid", "", "what maps cannot show", "Share of attribution that has no place on the image.", 1.0
    ),
    "not_finite": Number(
        "Not finite",
        *_LOWER,
        "Share of the explanations with NaN (not a number) or infinity, which no other number counts.",
        1.0,
    ),
}

METRICS: dict[str, type[Metric]] = {key: number.metric for key, number in NUMBERS.items() if number.metric is not None}
"""The metrics by the key that they are logged under."""

# At most 16 + 16 + 16 passes per image for infidelity, insertion and deletion; the others need none.
DEFAULT_METRICS = tuple(k for k, number in NUMBERS.items() if number.default and not needs_masks(number.metric))
_WITH_MASKS = tuple(k for k, number in NUMBERS.items() if number.default and needs_masks(number.metric))

CHANGE = tuple(key for key, number in NUMBERS.items() if number.compares)
"""Keys of what is measured against an earlier snapshot."""

AUDITED = tuple(key for key, number in NUMBERS.items() if number.audited)
"""Keys of what an audit finds."""

OWN = tuple(key for key, number in NUMBERS.items() if number.metric is None)
"""Keys of what a snapshot has whatever the metrics."""

OVERHEAD = (
    "overhead_seconds",
    "overhead_fraction",
    "overhead/explanation_seconds",
    "overhead/metrics_seconds",
    "overhead/drawing_seconds",
)
"""Keys of what a snapshot cost: logged beside it and no part of it, since a run that is resumed takes other times."""


def build_metrics(
    metrics: str | Iterable[str | Metric] | Mapping[str, str | Metric], *, masks: bool
) -> dict[str, Metric]:
    """Turn the user's choice into metrics by key.

    Args:
        metrics: ``"default"``, or names and instances; ``()`` for none; or a mapping from keys of the user's own.
        masks: whether the probe has masks; the default then includes the metrics that need them.

    Raises:
        ValueError: for a name that is no metric's, for two of one key, and for those that need masks without masks.
        TypeError: for anything else.

    Example:
        >>> list(build_metrics(("infidelity", m.Sparseness()), masks=False))
        ['infidelity', 'sparseness']
        >>> list(build_metrics({"coarse": m.Infidelity(num_perturbations=4), "fine": "infidelity"}, masks=False))
        ['coarse', 'fine']

    """
    if isinstance(metrics, str):
        metrics = (metrics,) if metrics != "default" else DEFAULT_METRICS + (_WITH_MASKS if masks else ())
    named = isinstance(metrics, Mapping)
    chosen = metrics.items() if isinstance(metrics, Mapping) else ((None, metric) for metric in metrics)
    built: dict[str, Metric] = {}
    for given, metric in chosen:
        if isinstance(metric, str):
            if metric not in METRICS:
                raise ValueError(f"Expected `metrics` to be 'default' or among {sorted(METRICS)}, but got {metric!r}.")
            own, metric = metric, METRICS[metric]()
        elif isinstance(metric, Metric):
            own = next((k for k, kind in METRICS.items() if type(metric) is kind), _snake(type(metric).__name__))
        else:
            raise TypeError(f"Expected `metrics` to hold names and torchmetrics.Metric, but got {metric!r}.")
        key = given if named else own
        if not isinstance(key, str):
            raise TypeError(f"Expected the keys of `metrics` to be strings, but got {key!r}. Write such as {own!r}.")
        kind = type(metric).__name__
        if key in OWN + OVERHEAD:
            raise ValueError(
                f"The key {key!r} of {kind} is logged at every snapshot in any case. Leave it out of `metrics`, or "
                f"give it a key of its own, as in metrics={{'my_{own}': {kind}()}}."
            )
        if key in built:
            raise ValueError(
                f"Two of `metrics` have the key {key!r}, so that one would overwrite the other. Give each a key of its "
                f"own, as in metrics={{'{key}': {kind}(), '{key}_2': {kind}(...)}}."
            )
        if needs_masks(metric) and not masks:
            raise ValueError(
                f"The metric {key!r} needs masks of the objects. Write `masks_key`, the key or position of the masks "
                f"in a validation batch, or leave {key!r} out of `metrics`."
            )
        built[key] = metric
    return built


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def describe(keys: Iterable[str]) -> list[dict[str, Any]]:
    """Order metric keys for the page and add what is known of each.

    Args:
        keys: keys as logged, without the prefix; unknown ones (a user's own metrics) are shown under their key.

    Returns:
        One dictionary a key: ``key`` and the fields of :class:`Facts`; known keys first, in the table's order.

    Example:
        >>> [fact["title"] for fact in describe(["mine", "infidelity", "consensus"])]
        ['Consensus', 'Infidelity', 'mine']

    """
    found = set(keys)
    ordered = [key for key in NUMBERS if key in found] + sorted(found - NUMBERS.keys())
    return [{"key": key, **_facts(key)} for key in ordered]


def _facts(key: str) -> dict[str, Any]:
    """What the page says of a number; of a user's own metric its key."""
    number = NUMBERS.get(key, Facts(key))
    return {field.name: getattr(number, field.name) for field in fields(Facts)}
