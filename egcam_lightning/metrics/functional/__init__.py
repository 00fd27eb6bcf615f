"""The metrics as pure functions, one value per image.

Maps are ``(B, h, w)`` at any resolution; models are reached through a :data:`ScoreFunction`, which
:func:`class_scores` makes of any classifier.
"""

from __future__ import annotations

from egcam_lightning.metrics.functional._maps import blurred
from egcam_lightning.metrics.functional._protocol import ExplainFunction, ScoreFunction, class_scores
from egcam_lightning.metrics.functional.agreement import consensus, consensus_null, recurrence
from egcam_lightning.metrics.functional.completeness import completeness_gap
from egcam_lightning.metrics.functional.concentration import complexity, sparseness
from egcam_lightning.metrics.functional.drift import (
    centre_shift,
    noise_floor,
    rank_drift,
    significant,
    ssim_drift,
    top_iou_drift,
)
from egcam_lightning.metrics.functional.fidelity import block_effects, infidelity, infidelity_of, random_blocks
from egcam_lightning.metrics.functional.insertion_deletion import deletion_auc, insertion_auc
from egcam_lightning.metrics.functional.localization import pointing_game, relevance_mass
from egcam_lightning.metrics.functional.sensitivity import max_sensitivity

__all__ = [
    "ExplainFunction",
    "ScoreFunction",
    "block_effects",
    "blurred",
    "centre_shift",
    "class_scores",
    "completeness_gap",
    "complexity",
    "consensus",
    "consensus_null",
    "deletion_auc",
    "infidelity",
    "infidelity_of",
    "insertion_auc",
    "max_sensitivity",
    "noise_floor",
    "pointing_game",
    "random_blocks",
    "rank_drift",
    "recurrence",
    "relevance_mass",
    "significant",
    "sparseness",
    "ssim_drift",
    "top_iou_drift",
]
