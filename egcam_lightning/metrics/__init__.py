"""Numbers about explanations, as :class:`torchmetrics.Metric` classes that need nothing else of this package.

The same as pure functions, one value an image: :mod:`egcam_lightning.metrics.functional`.
"""

from __future__ import annotations

from egcam_lightning.metrics.change import ExplanationConsensus, ExplanationDrift, ExplanationRecurrence
from egcam_lightning.metrics.faithfulness import (
    CompletenessGap,
    DeletionAUC,
    Infidelity,
    InsertionAUC,
    MaxSensitivity,
)
from egcam_lightning.metrics.shape import Complexity, PointingGame, RelevanceMass, Sparseness

__all__ = [
    "CompletenessGap",
    "Complexity",
    "DeletionAUC",
    "ExplanationConsensus",
    "ExplanationDrift",
    "ExplanationRecurrence",
    "Infidelity",
    "InsertionAUC",
    "MaxSensitivity",
    "PointingGame",
    "RelevanceMass",
    "Sparseness",
]
