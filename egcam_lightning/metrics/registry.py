"""Every number that is logged: its metric, whether it is among the defaults, and what the page says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchmetrics import Metric

from egcam_lightning import metrics as m

METRICS: dict[str, type[Metric]] = {
    "infidelity": m.Infidelity,
    "insertion_auc": m.InsertionAUC,
    "deletion_auc": m.DeletionAUC,
    "max_sensitivity": m.MaxSensitivity,
    "complexity": m.Complexity,
    "sparseness": m.Sparseness,
    "consensus": m.ExplanationConsensus,
    "recurrence": m.ExplanationRecurrence,
    "relevance_mass": m.RelevanceMass,
    "pointing_game": m.PointingGame,
}

# At most 16 + 16 + 16 passes per image; the others need none.
DEFAULT_METRICS = (
    "infidelity",
    "insertion_auc",
    "deletion_auc",
    "complexity",
    "sparseness",
    "consensus",
    "recurrence",
)

_MASKED = ("relevance_mass", "pointing_game")

CHANGE = (
    "drift/previous",
    "drift/reference",
    "drift/significant",
    "drift/ssim",
    "drift/top_iou",
    "drift/centre_shift",
    "prediction_changed",
)

OWN = (*CHANGE, "drift/noise_floor", "consensus_null", "completeness_gap", "degenerate", "not_finite", "off_grid")

OVERHEAD = (
    "overhead_seconds",
    "overhead_fraction",
    "overhead/explanation_seconds",
    "overhead/metrics_seconds",
    "overhead/drawing_seconds",
)


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
        metrics = (metrics,) if metrics != "default" else DEFAULT_METRICS + (_MASKED if masks else ())
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


def needs_masks(metric: Metric) -> bool:
    """Whether a metric measures against masks of the objects."""
    return isinstance(metric, (m.RelevanceMass, m.PointingGame))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True)
class MetricFacts:
    """What a reader needs to know of one metric.

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


_LOWER, _HIGHER = ("↓", "lower is better"), ("↑", "higher is better")

_STEADY = ("", "lower is steadier")

#: Every key that a snapshot may have, in the order in which the page shows them.
CATALOGUE: dict[str, MetricFacts] = {
    "consensus": MetricFacts(
        "Consensus",
        "",
        "near 1 is suspicious",
        "How alike the maps of different classes are. Near 1: one place, whatever the picture shows.",
        1.0,
    ),
    "recurrence": MetricFacts(
        "Recurrence",
        "",
        "higher than in other runs is suspicious",
        "How well each map is matched by that of some image of another class. Near 1: a few places, whatever is shown.",
        1.0,
    ),
    "consensus_null": MetricFacts(
        "Consensus of the objects",
        "",
        "",
        "The consensus of maps lying evenly on the marked objects.",
        1.0,
    ),
    "completeness_gap": MetricFacts(
        "Completeness gap", *_LOWER, "How far the maps are from adding up to the score that they explain; 0 is exact."
    ),
    "drift/previous": MetricFacts(
        "Drift since the previous snapshot", *_STEADY, "1 minus the rank correlation. Inside the band it is noise."
    ),
    "drift/reference": MetricFacts(
        "Drift since the first epoch", *_STEADY, "1 minus the rank correlation. Inside the band it is noise."
    ),
    "drift/significant": MetricFacts(
        "Significant drift", *_STEADY, "Share of the images that moved by more than their own noise floor.", 1.0
    ),
    "relevance_mass": MetricFacts(
        "Relevance mass", *_HIGHER, "Share of the positive relevance that lies on the marked object.", 1.0
    ),
    "pointing_game": MetricFacts(
        "Pointing game", *_HIGHER, "Share of the images whose hottest point lies on the marked object.", 1.0
    ),
    "infidelity": MetricFacts(
        "Infidelity",
        *_LOWER,
        "Error in foretelling what hiding a block does to the score: 0 is perfect, 1 is no better than an empty map.",
        1.0,
    ),
    "insertion_auc": MetricFacts(
        "Insertion AUC", *_HIGHER, "Mean score while pixels are put in, the most relevant first.", 1.0
    ),
    "deletion_auc": MetricFacts(
        "Deletion AUC", *_LOWER, "Mean score while pixels are taken out, the most relevant first.", 1.0
    ),
    "max_sensitivity": MetricFacts(
        "Maximum sensitivity", *_LOWER, "Largest relative change of the map in a small ball around the image."
    ),
    "complexity": MetricFacts(
        "Complexity", "", "lower is more compact", "Entropy of the map: 0 is one cell, 1 is all cells alike.", 1.0
    ),
    "sparseness": MetricFacts(
        "Sparseness", "", "higher is more compact", "Gini index of the map: 0 is all cells alike, 1 is one cell.", 1.0
    ),
    "prediction_changed": MetricFacts(
        "Predictions changed", *_STEADY, "Share of the images predicted otherwise than at the previous snapshot.", 1.0
    ),
    "drift/noise_floor": MetricFacts(
        "Noise floor of drift", *_LOWER, "Drift that sampling alone can produce; the band in the drift charts."
    ),
    "drift/ssim": MetricFacts(
        "Drift of structure", *_STEADY, "1 minus the structural similarity to the previous snapshot."
    ),
    "drift/top_iou": MetricFacts(
        "Drift of the hottest fifth", *_STEADY, "1 minus the overlap of the hottest fifth with the previous one.", 1.0
    ),
    "drift/centre_shift": MetricFacts(
        "Shift of the centre", *_STEADY, "How far the centre of relevance moved, as a share of the diagonal."
    ),
    "degenerate": MetricFacts("Empty maps", *_LOWER, "Share of the maps that have nothing positive.", 1.0),
    "off_grid": MetricFacts(
        "Off the grid", "", "what maps cannot show", "Share of attribution that has no place on the image.", 1.0
    ),
    "not_finite": MetricFacts(
        "Not finite", *_LOWER, "Share of the explanations with NaN or infinity, which no other number counts.", 1.0
    ),
}


def describe(keys: Iterable[str]) -> list[dict[str, Any]]:
    """Order metric keys for the page and add what is known of each.

    Args:
        keys: keys as logged, without the prefix; unknown ones (a user's own metrics) are shown under their key.

    Returns:
        One dictionary a key: ``key`` and the fields of :class:`MetricFacts`; known keys first, in catalogue order.

    Example:
        >>> [fact["title"] for fact in describe(["mine", "infidelity", "consensus"])]
        ['Consensus', 'Infidelity', 'mine']

    """
    found = set(keys)
    ordered = [key for key in CATALOGUE if key in found] + sorted(found - CATALOGUE.keys())
    return [{"key": key, **asdict(CATALOGUE.get(key, MetricFacts(key)))} for key in ordered]
