"""The explainer: the perturbation distribution, the estimator, and finding and cutting at a layer."""

from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.function import expected_gradcam
from egcam_lightning.explain.guided import guided_grad_cam
from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.sampling import Draws, sample_draws

__all__ = ["Draws", "ExpectedGradCAM", "Perturbation", "expected_gradcam", "guided_grad_cam", "sample_draws"]
