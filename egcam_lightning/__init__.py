"""Watch a vision model learn where to look: Expected Grad-CAM as a Lightning callback.

Example:
    >>> from egcam_lightning import ExpectedGradCAMCallback
    >>> callback = ExpectedGradCAMCallback()  # Trainer(callbacks=[callback])

"""

from egcam_lightning.auditing import Audit, audit
from egcam_lightning.callback import ExpectedGradCAMCallback
from egcam_lightning.data.reservoir import BaselineReservoir
from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation, expected_gradcam
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.findings.records import Finding
from egcam_lightning.history.history import History
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.metrics.rank_layers import RankedLayer, rank_layers
from egcam_lightning.replaying.comparison import Comparison, compare
from egcam_lightning.replaying.replay import replay

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "BaselineReservoir",
    "Comparison",
    "Draws",
    "ExpectedGradCAM",
    "ExpectedGradCAMCallback",
    "Explanation",
    "Finding",
    "History",
    "Perturbation",
    "ProbeImages",
    "RankedLayer",
    "Snapshot",
    "audit",
    "compare",
    "expected_gradcam",
    "rank_layers",
    "replay",
]
