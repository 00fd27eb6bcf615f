"""Expected Grad-CAM as captum computes it."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import LayerGradientShap, LayerIntegratedGradients
from torch import Tensor

from egcam_lightning.explain import Draws
from tests.support.networks import Case


def midpoints(steps: int, count: int) -> Tensor:
    """``(steps, count)``: the middle of every stratum."""
    return ((torch.arange(steps) + 0.5) / steps)[:, None].expand(-1, count)


def captum_over_all_baselines(case: Case, steps: int) -> Tensor:
    """``(B, h, w)``: layer integrated gradients from every baseline, averaged."""
    method = LayerIntegratedGradients(case.model, case.module)
    maps = [
        method.attribute(
            case.inputs, baseline[None].expand_as(case.inputs), case.target, n_steps=steps, method="riemann_middle"
        )
        for baseline in case.baselines
    ]
    return torch.stack(maps).mean(0).sum(1).detach()


def captum_gradient_shap(case: Case, samples: int, seed: int) -> tuple[Tensor, Draws]:
    """Its map, and the pairs and places that it drew from NumPy's global generator."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        theirs = LayerGradientShap(case.model, case.module).attribute(
            case.inputs, case.baselines, n_samples=samples, stdevs=0.0, target=case.target
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    replay = np.random.RandomState(seed)
    count = len(case.inputs)
    pairs = replay.choice(len(case.baselines), samples * count).reshape(count, samples).T
    places = replay.uniform(0.0, 1.0, samples * count).reshape(count, samples).T
    return theirs.sum(1).detach(), Draws(torch.from_numpy(pairs.copy()), torch.from_numpy(places.astype(np.float32)))
