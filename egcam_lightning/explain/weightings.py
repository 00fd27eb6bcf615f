"""How gradients become a map: one small function and one entry for each method built on Grad-CAM."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ``G``, ``D = A - A'`` and ``A``, each ``(n, K, h, w)``, to maps ``(n, h, w)``.

The gradient ``G`` is taken at a point of a path, ``D`` is the difference of its ends, and ``A`` the image's own
activation; without a baseline ``D`` is ``A``.
"""

_TINY = 1e-6


def weighted(weights: Tensor, difference: Tensor) -> Tensor:
    """``sum_k w_k * D_k``, of weights ``(n, K)``."""
    return (weights.view(*weights.shape[:2], *[1] * (difference.ndim - 2)) * difference).sum(1)


def elementwise(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """``sum_k G_k * D_k``: HiResCAM (Draelos and Carin, 2020); with expected gradients complete."""
    return (gradient * difference).sum(1)


def channel(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """``sum_k mean(G_k) * D_k``: Grad-CAM (Selvaraju et al., 2017)."""
    return weighted(gradient.flatten(2).mean(2), difference)


def grad_cam_plus_plus(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., 2018): weights from positive gradients, by the share of each position.

    ``w_k = sum_ij a_kij max(G_kij, 0)`` with ``a = G^2 / (2 G^2 + sum_ij(A_k) G^3)``, and the map ``sum_k w_k * D_k``.
    """
    square = gradient.square()
    total = activation.flatten(2).sum(2).view(*activation.shape[:2], *[1] * (activation.ndim - 2))
    share = square / (2 * square + total * square * gradient + _TINY)
    return weighted((share * gradient.clamp(min=0)).flatten(2).sum(2), difference)


def xgrad_cam(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al., 2020): ``w_k = sum_ij G_kij A_kij / sum_ij A_kij``, and the map ``sum_k w_k * D_k``."""
    weights = (gradient * activation).flatten(2).sum(2) / (activation.flatten(2).sum(2) + _TINY / 10)
    return weighted(weights, difference)


def layer_cam(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021): ``sum_k max(G_k, 0) * D_k``."""
    return (gradient.clamp(min=0) * difference).sum(1)


def rectified(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """Grad-CAM with an element-wise ReLU (Pillai and Pirsiavash, 2021): ``sum_k max(G_k * D_k, 0)``."""
    return (gradient * difference).clamp(min=0).sum(1)


def eigen_grad_cam(gradient: Tensor, difference: Tensor, activation: Tensor) -> Tensor:
    """Eigen-Grad-CAM (after Muhammad and Yeasin, 2020): the first principal component of ``G * D`` over positions.

    A component has no sign of its own: the one that goes along with the sum over channels is taken.
    """
    product = (gradient * difference).flatten(2)
    centred = (product - product.mean(2, keepdim=True)).transpose(1, 2)  # (n, positions, channels)
    if centred.shape[1] <= centred.shape[2]:  # the smaller of the two Gram matrices
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        projection = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        projection = (centred @ vectors[..., -1:])[..., 0]
    along = (projection * product.sum(1)).sum(1, keepdim=True)
    return torch.where(along < 0, -projection, projection).view(len(gradient), *gradient.shape[2:])


WEIGHTINGS: dict[str, Weigh] = {
    "elementwise": elementwise,
    "channel": channel,
    "gradcam++": grad_cam_plus_plus,
    "xgradcam": xgrad_cam,
    "layercam": layer_cam,
    "rectified": rectified,
    "eigen": eigen_grad_cam,
}
# Shares of a sum mean nothing where its terms cancel.
_NEED_POSITIVE = ("gradcam++", "xgradcam")


def check_activation(weighting: str, activation: Tensor, layer: str) -> None:
    """Warn where a weighting divides by sums of activations that are not all positive."""
    if weighting in _NEED_POSITIVE and bool((activation < 0).any()):
        warnings.warn(
            f"The weighting {weighting!r} divides by sums of activations, and those of layer {layer!r} have both "
            "signs: its weights may be large and mean nothing. Explain a layer behind a ReLU, or write "
            "weighting='elementwise'.",
            stacklevel=2,
        )
