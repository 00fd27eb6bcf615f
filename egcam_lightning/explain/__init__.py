"""The explainer: the perturbation distribution, the estimator, and finding and cutting at a layer."""

from egcam_lightning.explain.draws import Draws, sample_draws
from egcam_lightning.explain.estimator import ExpectedGradCAM, expected_gradcam
from egcam_lightning.explain.perturbation import Perturbation

__all__ = ["Draws", "ExpectedGradCAM", "Perturbation", "expected_gradcam", "sample_draws"]
