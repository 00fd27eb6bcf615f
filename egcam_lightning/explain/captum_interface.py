"""``attribute``, with captum's arguments, meaning and shapes, for the tools that take captum's methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.explain.inputs import as_tuple
from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.sampling import sample_draws

Method = TypeVar("Method", bound=Callable[..., Any])


def _wrapped(method: Method) -> Method:
    """Leave a method as it is, behind a wrapper: captum's methods are, and ``NoiseTunnel`` calls what is inside."""

    @wraps(method)
    def attribute(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return cast(Method, attribute)


class CaptumInterface:
    """What captum's ``NoiseTunnel``, ``infidelity`` and ``sensitivity_max``, and Quantus, ask of a method.

    Attributes:
        multiplies_by_inputs: whether attributions are of contributions, not of mere sensitivity: they are.

    """

    multiplies_by_inputs = True
    perturbation: Perturbation
    seed: int
    forward: Callable[..., Any]
    find: Callable[..., str]
    __call__: Callable[..., Explanation]

    @property
    def forward_func(self) -> Callable[..., Any]:
        """From images to the logits."""
        return self.forward

    def _chunks(self) -> list[Chunks]:
        raise NotImplementedError

    def has_convergence_delta(self) -> bool:
        """Whether ``return_convergence_delta`` is taken: it is."""
        return True

    @_wrapped
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Tensor | int | None = None,
        additional_forward_args: Any = None,
        n_samples: int | None = None,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Explain a batch of images as captum's methods do, such as ``GradientShap``.

        Args:
            inputs: ``(B, C, H, W)``, or a tuple of this alone, as captum's metrics pass it on.
            baselines: ``(R, C, H, W)``, a distribution of baselines as ``GradientShap`` takes them; a number, for one
                image of that value; ``None`` for zero.
            target: ``(B,)`` integers, or one class for all; ``None`` for the predicted one.
            additional_forward_args: what the model takes besides the images.
            n_samples: draws per image; ``None`` for the explainer's own.
            internal_batch_size: points that go through the model at once; ``None`` for the explainer's own.
            return_convergence_delta: whether to return the deltas as well.

        Returns:
            ``(B, C, H, W)``, signed: the layer's map at the images' size, shared equally by the channels, which it does
            not tell apart, so that its sum is the same. With ``return_convergence_delta`` also ``(B,)``, ``sum - (score
            - baseline score)``, off-grid attribution (of a transformer's class token) counted in. For a tuple of images
            attributions are a tuple, too.

        Raises:
            TypeError: for a tuple of several inputs: one tensor of images is explained.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from egcam_lightning import ExpectedGradCAM
            >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> attribution, delta = ExpectedGradCAM(model, "0").attribute(
            ...     torch.rand(2, 1, 8, 8), target=1, n_samples=4, return_convergence_delta=True
            ... )
            >>> attribution.shape, bool((delta.abs() < 1e-4).all())
            (torch.Size([2, 1, 8, 8]), True)

        """
        if isinstance(baselines, tuple):
            (baselines,) = baselines
        if isinstance(inputs, tuple) and len(inputs) == 1:
            arguments = (target, additional_forward_args, n_samples, internal_batch_size)
            found = self.attribute(inputs[0], baselines, *arguments, return_convergence_delta)
            return ((found[0],), found[1]) if return_convergence_delta else (found,)
        if not isinstance(inputs, Tensor):
            several = f"a tuple of {len(inputs)}" if isinstance(inputs, tuple) else type(inputs).__name__
            raise TypeError(
                f"Expected `inputs` to be a tensor of images (B, C, H, W), but got {several}. Write what else the "
                "model takes as `additional_forward_args`."
            )
        perturbation = self.perturbation
        if perturbation.needs_baselines and not isinstance(baselines, Tensor):
            baselines = torch.full_like(inputs[:1], float(baselines or 0))
        shown = baselines if perturbation.needs_baselines and isinstance(baselines, Tensor) else None
        draws = None
        if n_samples is not None and not perturbation.single_draw:
            rows = 1 if shown is None else len(shown)
            draws = sample_draws(n_samples, rows, range(len(inputs)), perturbation.interval, self.seed)
        self.find(inputs, *as_tuple(additional_forward_args))
        with self._at_once(internal_batch_size):
            one = self(inputs, shown, target, additional_forward_args=additional_forward_args, draws=draws)
        mode = "bilinear" if inputs.ndim == 4 else "trilinear"
        spread = interpolate(one.attribution[:, None], size=inputs.shape[2:], mode=mode).expand_as(inputs)
        spread = spread * (one.attribution[0].numel() / inputs[0].numel())
        if not return_convergence_delta:
            return spread
        total = one.attribution.flatten(1).sum(1) + one.off_grid
        return spread, total - (one.score - one.baseline_score)

    @contextmanager
    def _at_once(self, count: int | None) -> Iterator[None]:
        """Let so many points go through the model at once while inside; ``None`` for as many as before."""
        if count is None:
            yield
            return
        before = [(chunks, chunks.size) for chunks in self._chunks()]
        for chunks, _ in before:
            chunks.size = count
        try:
            yield
        finally:
            for chunks, size in before:
                chunks.size = size
