"""Guided Grad-CAM: a map of the layer, times what guided backpropagation says of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.explain.split_model import can_be_hooked, hooked

Forward = Callable[[Tensor], Any]


def guided_backpropagation(model: nn.Module, images: Tensor, target: Tensor, forward: Forward | None = None) -> Tensor:
    """The gradient of the logits of classes by pixels, as ReLUs let none but positive ones through.

    Of Springenberg et al., *Striving for Simplicity*, 2015. ReLUs have to be modules: those that are called as
    functions are passed as they are.

    Args:
        model: the model, which is left as it was.
        images: ``(B, C, H, W)``.
        target: ``(B,)`` int64.
        forward: from images to logits; ``None`` for the model.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: for a model without a ReLU that is a module.

    """
    rectifiers = [module for module in model.modules() if isinstance(module, nn.ReLU) and can_be_hooked(module)]
    if not rectifiers:
        raise ValueError(
            f"Expected a model with nn.ReLU modules, which guided backpropagation acts on, but {type(model).__name__} "
            "has none. Write ReLUs as modules, or take the map alone."
        )

    def let_positive_through(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]
        return output

    with torch.inference_mode(False), torch.enable_grad(), isolated(model), ExitStack() as hooks:
        for module in rectifiers:
            hooks.enter_context(hooked(module, let_positive_through))
        leaf = images.detach().clone().requires_grad_()
        logits = (forward or model)(leaf)
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return gradient


def guided_grad_cam(
    explainer: ExpectedGradCAM,
    images: Tensor,
    baselines: Tensor | None = None,
    target: Tensor | int | None = None,
    *,
    interpolate_mode: str = "bilinear",
) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al., 2017), with any map of the explainer's in the place of Grad-CAM's.

    Args:
        explainer: how the layer is explained; with ``Perturbation.grad_cam()`` it is the original.
        images: ``(B, C, H, W)``.
        baselines: ``(R, C, H, W)``, where the explainer needs them.
        target: ``(B,)`` int64, one class for all, or ``None`` for the predicted one.
        interpolate_mode: how the positive part of the map is brought to the images' size.

    Returns:
        ``(B, C, H, W)``, signed. It is not complete, and says where edges are that the class looks at.

    Raises:
        ValueError: for a model without a ReLU that is a module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from egcam_lightning import ExpectedGradCAM, Perturbation
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        ... )
        >>> guided_grad_cam(ExpectedGradCAM(model), torch.rand(2, 3, 16, 16), torch.rand(4, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])

    """
    found = explainer(images, baselines, target)
    guide = guided_backpropagation(explainer.model, images, found.target, explainer.forward)
    smooth = None if interpolate_mode == "nearest" else False
    size = tuple(images.shape[2:])
    positive = found.attribution.clamp(min=0)[:, None]
    return guide * interpolate(positive, size=size, mode=interpolate_mode, align_corners=smooth)
