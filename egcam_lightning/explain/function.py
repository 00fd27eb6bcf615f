"""Expected Grad-CAM as one function call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.explanation import Explanation


def expected_gradcam(
    model: nn.Module,
    inputs: Tensor,
    baselines: Tensor | None = None,
    target: Tensor | int | None = None,
    target_layer: str | nn.Module = "auto",
    **kwargs: Any,
) -> Explanation:
    """Explain a batch of images in one call: :class:`ExpectedGradCAM`, built and used once.

    Args:
        model: the model.
        inputs: ``(B, C, H, W)``, as the model takes them.
        baselines: ``(R, C, H, W)``, images from the training data.
        target: ``(B,)`` int64, one class for all, or ``None`` for the predicted class.
        target_layer: ``"auto"``, a module's name, or a module.
        **kwargs: any other argument of :class:`ExpectedGradCAM`.

    Returns:
        The explanation.

    Raises:
        ValueError: as :class:`ExpectedGradCAM` does.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> expected_gradcam(model, torch.rand(2, 1, 8, 8), torch.rand(4, 1, 8, 8), target=1).draws.shape
        torch.Size([32, 2, 8, 8])

    """
    return ExpectedGradCAM(model, target_layer, **kwargs)(inputs, baselines, target)
