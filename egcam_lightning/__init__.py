"""Watch a vision model learn where to look: Expected Grad-CAM as a Lightning callback.

Example:
    >>> from egcam_lightning import ExpectedGradCAMCallback
    >>> callback = ExpectedGradCAMCallback()  # Trainer(callbacks=[callback])

"""

from egcam_lightning.callback import ExpectedGradCAMCallback
from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation, expected_gradcam
from egcam_lightning.reservoir import BaselineReservoir
from egcam_lightning.snapshot import Explanation, History, ProbeImages, Snapshot

__version__ = "0.1.0"

__all__ = [
    "BaselineReservoir",
    "Draws",
    "ExpectedGradCAM",
    "ExpectedGradCAMCallback",
    "Explanation",
    "History",
    "Perturbation",
    "ProbeImages",
    "Snapshot",
    "expected_gradcam",
]
