"""Numbers about explanations, as :class:`torchmetrics.Metric` classes that need nothing else of this package.

The same as pure functions, one value per image: :mod:`egcam_lightning.metrics.functional`.
"""

from __future__ import annotations

from egcam_lightning.metrics.agreement import ExplanationConsensus, ExplanationRecurrence
from egcam_lightning.metrics.completeness import CompletenessGap
from egcam_lightning.metrics.concentration import Complexity, Sparseness
from egcam_lightning.metrics.drift import ExplanationDrift
from egcam_lightning.metrics.fidelity import Infidelity
from egcam_lightning.metrics.insertion_deletion import DeletionAUC, InsertionAUC
from egcam_lightning.metrics.localization import PointingGame, RelevanceMass
from egcam_lightning.metrics.sensitivity import MaxSensitivity

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
