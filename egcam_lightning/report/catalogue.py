"""What the page says about each metric: its title, which way is good, and one line in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


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
