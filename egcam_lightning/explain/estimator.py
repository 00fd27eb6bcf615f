"""Expected Grad-CAM and the family around it: from images and baselines to an :class:`Explanation`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.chunking import Chunks, is_out_of_memory
from egcam_lightning.explain.config import ExplainerConfig
from egcam_lightning.explain.explanation import Explanation, mean_over_layers
from egcam_lightning.explain.inputs import as_targets, as_tuple, check_inputs
from egcam_lightning.explain.isolation import isolated, uninitialised
from egcam_lightning.explain.layer_search import find_layer
from egcam_lightning.explain.model_adapter import ModelAdapter
from egcam_lightning.explain.path_gradients import PathGradients, capture, replay, rows_of
from egcam_lightning.explain.perturbation import Perturbation, Weighting
from egcam_lightning.explain.sampling import Draws, sample_draws
from egcam_lightning.explain.scores import Score, ScoreName, as_score, check_score, in_float
from egcam_lightning.explain.split_model import SplitModel, host_image_like, smaller, varies
from egcam_lightning.explain.token_layout import Layout

_MIXES = (
    "The model's output for an image depends on the other images of its batch, as behind a BatchNorm without running "
    "statistics."
)
_ALONE = (
    "Each image is explained alone, as in a batch of one, which takes longer, and is not what the model says of it in "
    "a batch."
)
_INSTEAD = "Write `track_running_stats=True`, or use a normalisation of each image such as nn.GroupNorm."


class ExpectedGradCAM:
    """Explain which positions of an image a model's score comes from, relative to baseline images.

    Expected Grad-CAM (Buono et al., *Not All CAMs Are Complete*, TMLR 2026) replaces Grad-CAM's gradient at the image
    by its expectation over paths from baselines to the image. With the default perturbation the map is *complete*: it
    sums to the difference between the score of the image and the mean score of the baselines, as far as the layer is a
    cut of the network and the draws suffice; :attr:`Explanation.completeness_gap` says how far.

    The model is left exactly as it was: its modes, its gradients, its buffers and every random generator.

    Args:
        model: the model. Explained in evaluation mode, whatever mode it is in.
        target_layer: ``"auto"`` for the last layer that nothing bypasses and whose grid is at least 4x4 (in a
            transformer that reads its class token an early one, see
            :func:`~egcam_lightning.explain.layer_search.find_layer`), or a module's name, or a module. Several in a
            list: calling gives the mean of their maps, :meth:`each` one explanation per layer.
        perturbation: where gradients are taken; ``None`` for :meth:`Perturbation.expected`.
        weighting: ``"elementwise"`` or ``"channel"``; ``None`` for the perturbation's own.
        num_samples: draws per image, ``S``. A multiple of the number of baselines is best. One draw is taken where all
            would be the same.
        seed: the draws' seed; the same seed gives the same draws at every call.
        score: what is explained: ``"logit"``, ``"log_probability"``, ``"probability"`` or ``"margin"`` of a class;
            ``"region"``, the mean logit of a class over where it is predicted, of a segmentation; ``"value"`` of a
            regression; or a callable from (output, target ``(B,)``) to ``(B,)``.
        output_key: key, attribute or position of the logits in the model's output, with dots to lead deeper; ``None``
            finds the usual ones.
        forward_fn: ``forward_fn(model, images, *additional_forward_args)`` to call the model; ``None`` for
            ``model(images, *additional_forward_args)``.
        reshape_transform: from the layer's activation to ``(N, K, h, w)``, where its layout cannot be inferred. It is
            given the images in the first dimension, also where the layer has them in the second, behind its tokens.
        chunk_size: points that go through the model at once; ``None`` chooses by their size. Halved, for good, when
            memory runs out.

    Raises:
        TypeError: for a layer or a perturbation that is none.
        ValueError: for ``num_samples`` or ``chunk_size`` below 1, a seed that is none, and names that are none of the
            choices.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        ... )
        >>> explainer = ExpectedGradCAM(model, num_samples=4)
        >>> explanation = explainer(torch.rand(2, 3, 8, 8), baselines=torch.rand(4, 3, 8, 8), target=3)
        >>> explanation.layer, explanation.attribution.shape, explanation.heatmap.shape
        ('1', torch.Size([2, 8, 8]), torch.Size([2, 8, 8]))
        >>> bool((explanation.completeness_gap < 1e-3).all())
        True

    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: str | nn.Module | Sequence[str | nn.Module] = "auto",
        perturbation: Perturbation | None = None,
        weighting: Weighting | None = None,
        num_samples: int = 32,
        seed: int = 0,
        *,
        score: ScoreName | Score = "logit",
        output_key: str | int | None = None,
        forward_fn: Callable[..., Any] | None = None,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        config = ExplainerConfig(
            target_layer=target_layer,
            perturbation=perturbation,
            weighting=weighting,
            num_samples=num_samples,
            seed=seed,
            score=score,
            output_key=output_key,
            forward_fn=forward_fn,
            reshape_transform=reshape_transform,
            chunk_size=chunk_size,
        )
        self.model = model
        self.target_layer = target_layer
        perturbation = perturbation or Perturbation.expected()
        self.perturbation = replace(perturbation, weighting=weighting or perturbation.weighting)
        self.num_samples = 1 if self.perturbation.single_draw else num_samples
        self.seed = seed
        self.score = as_score(score)
        self._adapter = ModelAdapter(model, forward_fn, output_key)
        self.reshape_transform = reshape_transform
        # Apart, because memory that images have run out of says nothing about points.
        self._image_chunks, self._point_chunks = Chunks(chunk_size), Chunks(chunk_size)
        self._found: tuple[SplitModel, Layout] | None = None
        self._size: tuple[int, ...] = ()
        self._warned_no_cut = False
        several = isinstance(target_layer, (list, tuple))
        self._parts = [self._at(layer) for layer in config.layers] if several else []

    def _at(self, layer: str | nn.Module) -> ExpectedGradCAM:
        """The same explainer for one layer."""
        part = copy(self)
        part.target_layer, part._parts = layer, []
        part._point_chunks = Chunks(self._point_chunks.size)  # their activations differ in size
        return part

    @property
    def chunk_size(self) -> int | None:
        """Points that go through the model at once: what was asked for, or what memory has turned out to allow.

        Where it allowed more of activations than of images, or the other way round, the smaller of the two.
        """
        sizes = [part.chunk_size for part in self._parts]
        sizes += [self._image_chunks.size, self._point_chunks.size]
        return min((size for size in sizes if size is not None), default=None)

    @property
    def layer(self) -> str | None:
        """The resolved name of the target layer, once it has been looked for."""
        names = [part.layer for part in self._parts] or [self._found[0].name if self._found else None]
        return None if None in names else "+".join(str(name) for name in names)

    @property
    def grid(self) -> tuple[int, ...] | None:
        """The grid of the maps, once the layer has been looked for; of several layers the finest."""
        grids = [part.grid for part in self._parts] or [self._found[1].grid if self._found else None]
        return max((g for g in grids if g is not None), key=lambda g: torch.Size(g).numel(), default=None)

    def forward(self, images: Tensor, *others: Any) -> Any:
        """The model's output for its inputs, before anything is explained: the logits, as ``output_key`` finds them.

        That of each image alone, where the model mixes the images of a batch.
        """
        if not self._adapter.mixes_images:
            return self._adapter(images, *others)
        rows = torch.arange(len(images), device=images.device)[:, None]
        return torch.cat([self._adapter(images[row], *rows_of(others, row)) for row in rows])

    def logits(self, output: Any) -> Any:
        """The same, of what the model has returned already."""
        return self._adapter.logits(output)

    def bind(self, images: Tensor, target: Tensor, *others: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """The explained score of what takes the place of images, such as images with a block blurred.

        Args:
            images: ``(B, C, H, W)``.
            target: ``(B,)`` int64, or ``(B, classes)`` bool.
            *others: the model's other inputs, with a row per image.

        Returns:
            From ``(n, C, H, W)``, the images ``(n,)`` whose places they take, and whether to give probabilities where
            the score has them, to ``(n,)`` float32.

        """
        output = images
        if self.score.looks_at_images:
            with torch.no_grad():
                output = in_float(self.forward(images, *others))
        bound = [score.bind(output, target) for score in (self.score, self.score.shown)]

        def scores(points: Tensor, rows: Tensor, probability: bool) -> Tensor:
            output = in_float(self.forward(points, *rows_of(others, rows)))
            return check_score(bound[probability](output, rows), len(points))

        return scores

    def find(self, images: Tensor, *others: Any) -> str:
        """Find the target layer, unless it has been found, and return its name.

        Images of another size than before keep the layer, and have its grid found anew.

        Args:
            images: ``(n, C, H, W)``; the first four are used.
            *others: the model's other inputs, with a row per image.

        Raises:
            ValueError: where there is none, see :func:`~egcam_lightning.explain.layer_search.find_layer`; for a model
                with parameters that have no values yet.

        """
        for part in self._parts:
            part.find(images, *others)
        if self._parts:
            return str(self.layer)
        lazy = uninitialised(self.model)
        if lazy is not None:
            raise ValueError(f"The model's parameter {lazy!r} has no values yet. Call the model with a batch first.")
        self._settle_company(images, others)
        size = tuple(images.shape[1:])
        if self._found is None or self._size != size:
            target = self.target_layer if self._found is None else self._found[0].module
            assert isinstance(target, (str, nn.Module))
            with isolated(self.model, seed=self.seed):
                sample = images[: max(2, min(4, self.chunk_size or 4))].detach()
                rows = torch.arange(len(sample))
                if not varies(sample):  # whether a layer is a cut shows only where outputs differ
                    sample, rows = torch.cat([sample[:1], host_image_like(sample, seed=1)]), torch.zeros(2).long()
                given = rows_of(others, rows.to(images.device))
                if self.reshape_transform is None:  # which need not know of formats
                    self._adapter.settle_format(sample, *given)
                forward = lambda x: self._adapter(x, *given)  # noqa: E731
                cut, layout = find_layer(self.model, forward, sample, target, self.reshape_transform)
                self._found = SplitModel(cut.module, cut.name, self._adapter, cut.axis), layout
                self._size = size
        return self._found[0].name

    def _settle_company(self, images: Tensor, others: tuple[Any, ...]) -> None:
        """See to it that each image is explained alone where the model mixes the images of a batch.

        Else what is explained would change with whatever happens to go through the model beside it.
        """
        subject = self._adapter
        if subject.mixes_images is None:
            given = rows_of(others, torch.zeros(2).long().to(images.device))
            if subject.settle_company(images[:1].detach(), *given, seed=self.seed):
                try:
                    with torch.no_grad(), isolated(self.model, seed=self.seed):
                        subject(images[:1], *rows_of(others, slice(1)))
                except (RuntimeError, ValueError) as error:
                    if is_out_of_memory(error):
                        raise
                    raise ValueError(
                        f"{_MIXES} Expected it to take one image alone, so that this can be explained, but it raised: "
                        f"{error} {_INSTEAD}"
                    ) from error
                warnings.warn(f"{_MIXES} {_ALONE} {_INSTEAD}", stacklevel=4)
        if subject.mixes_images:
            self._image_chunks.size = self._point_chunks.size = 1

    def is_fast(self, images: Tensor, *others: Any) -> bool:
        """Whether paths run between activations, so that a draw costs only the part of the network behind the layer.

        That takes ``space="activation"`` and layers that are cuts of the network; otherwise each draw is a pass through
        all of it.

        Args:
            images: ``(n, C, H, W)``; the first two are used.
            *others: the model's other inputs, with a row per image.

        """
        if self._parts:
            return all(part.is_fast(images, *others) for part in self._parts)
        self.find(images, *others)
        assert self._found is not None
        with torch.no_grad(), isolated(self.model, seed=self.seed):
            sample = torch.cat([images[:2], host_image_like(images[:2], seed=1)])
            given = rows_of(others, torch.tensor([0, 1, 0] if len(images) > 1 else [0, 0], device=images.device))
            cut, host_image = self._found[0], host_image_like(sample, seed=2)
            activation, output = capture(cut, sample, self._image_chunks, given)
            holds = cut.holds(
                activation, output, host_image, lambda: replay(cut, activation, host_image, self._point_chunks, given)
            )
        return holds and self.perturbation.space == "activation"

    def __call__(
        self,
        inputs: Tensor,
        baselines: Tensor | None = None,
        target: Tensor | int | None = None,
        *,
        additional_forward_args: Any = None,
        draws: Draws | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Explanation:
        """Explain a batch of images.

        Args:
            inputs: ``(B, C, H, W)``, as the model takes them.
            baselines: ``(R, C, H, W)``, on the same device; needed where the perturbation's baseline is ``"data"``.
            target: ``(B,)`` int64, or one class for all, or ``None`` for the predicted class; or ``(B, classes)`` bool,
                a set of classes for each image, explained by the mean of their logits.
            additional_forward_args: what the model takes besides the images: a tensor with a row per image, or anything
                else, or a tuple of these. They are held fixed: a baseline is seen with those of the image that it is a
                baseline of, which costs a pass for each pair of them instead of one a baseline.
            draws: draws to use instead of the explainer's own.
            image_index: an index for each image, by which its draws are made; ``None`` for ``0 ... B - 1``.

        Returns:
            The explanation.

        Raises:
            ValueError: for inputs, baselines, targets or draws that do not fit the model or each other.

        """
        if self._parts:
            return mean_over_layers(
                self.each(
                    inputs,
                    baselines,
                    target,
                    additional_forward_args=additional_forward_args,
                    draws=draws,
                    image_index=image_index,
                )
            )
        others = as_tuple(additional_forward_args)
        check_inputs(self.perturbation, inputs, baselines, others, draws)
        with torch.inference_mode(False), torch.no_grad(), isolated(self.model, seed=self.seed):
            # Inference tensors cannot be saved for a gradient; a clone made here is an ordinary tensor.
            inputs = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
            if baselines is not None:
                baselines = baselines.detach().clone() if baselines.is_inference() else baselines.detach()
            self.find(inputs, *others)
            index = list(range(len(inputs))) if image_index is None else [int(i) for i in image_index]
            if len(index) != len(inputs):
                raise ValueError(f"Expected `image_index` for {len(inputs)} images, but got {len(index)}.")
            return self._explain(inputs, baselines, others, target, draws, index)

    def each(
        self,
        inputs: Tensor,
        baselines: Tensor | None = None,
        target: Tensor | int | None = None,
        *,
        additional_forward_args: Any = None,
        draws: Draws | None = None,
        image_index: Sequence[int] | None = None,
    ) -> list[Explanation]:
        """Explain a batch of images at each of the layers.

        Args:
            inputs: as for calling it, and so are the others.
            baselines: the same.
            target: the same.
            additional_forward_args: the same.
            draws: the same.
            image_index: the same.

        Returns:
            One explanation a layer, in the order in which they were given.

        """
        parts = self._parts or [self]
        explain = {"additional_forward_args": additional_forward_args, "draws": draws, "image_index": image_index}
        return [part(inputs, baselines, target, **explain) for part in parts]

    def _explain(
        self,
        inputs: Tensor,
        baselines: Tensor | None,
        others: tuple[Any, ...],
        target: Tensor | int | None,
        draws: Draws | None,
        image_index: list[int],
    ) -> Explanation:
        assert self._found is not None
        cut, layout = self._found
        kind = self.perturbation.baseline
        references = {"data": baselines, "zeros": torch.zeros_like(inputs[:1]), "none": None}[kind]

        activation, output = capture(cut, inputs, self._image_chunks, others)
        targets = as_targets(target, output, len(inputs), inputs.device, self.score)
        score_of = self.score.bind(in_float(output), targets)
        run = PathGradients(
            self.perturbation,
            self.seed,
            self._image_chunks,
            self._point_chunks,
            cut,
            layout,
            inputs,
            others,
            activation,
            output,
            score_of,
            host_image_like(inputs),
            linear_score=self.score.linear,
        )
        if references is not None:
            run.baseline_inputs = references
            if others:  # each baseline is seen with what each image is seen with
                every = torch.arange(len(inputs), device=inputs.device).repeat_interleave(len(references))
                run.baseline_inputs = references.repeat(len(inputs), *[1] * (references.ndim - 1))
                run.baseline_others = rows_of(others, every)
            run.baseline_activation, run.baseline_output = capture(
                cut, run.baseline_inputs, self._image_chunks, run.baseline_others
            )
        in_activations = self.perturbation.space == "activation"
        is_cut = (in_activations or kind == "none") and self._is_cut(run)
        # The gradient at the image itself is the same, whichever way it is had.
        differs = in_activations and not is_cut and not (kind == "none" and self.perturbation.noise == 0)
        if differs and not self._warned_no_cut and run.tells_images_apart:
            self._warned_no_cut = True
            warnings.warn(
                f"The layer {cut.name!r} is not a cut of the network: something bypasses it, or the model remembers "
                "its batch size. Paths run between images instead, which costs more and is less complete. Pass a "
                "`target_layer` that nothing bypasses, such as the end of a stage.",
                stacklevel=4,
            )
        run.from_points = in_activations and is_cut

        if draws is None:
            rows = 1 if references is None else len(references)
            draws = sample_draws(self.num_samples, rows, image_index, self.perturbation.interval, self.seed)
        index, images = draws.baseline_index.to(inputs.device), torch.arange(len(inputs), device=inputs.device)
        # Which row of the baselines as they were seen: with other inputs, there is one for each image.
        seen = index + images * len(references) if references is not None and others else index
        draws = Draws(seen, draws.place.to(inputs.device), draws.noise)
        maps, off_grid = run.maps(draws, image_index)

        score = run.score(output, images)
        if references is not None:
            assert run.baseline_output is not None
            scores = run.score(run.baseline_output[seen.flatten()], images.repeat(len(draws.place)))
            baseline_score = scores.view_as(draws.place).mean(0)
        elif is_cut:
            rows = len(inputs) if others else 1  # without other inputs, nothing is the same for all
            nothing = replay(cut, torch.zeros_like(activation[:rows]), run.host_image, self._point_chunks, others)
            baseline_score = run.score(nothing.expand(len(inputs), *nothing.shape[1:]), images)
        else:
            baseline_score = torch.full_like(score, torch.nan)
        return Explanation.from_draws(
            maps,
            off_grid.mean(0),
            # Of a set, the class that the model holds most likely stands for it.
            target=targets if targets.ndim == 1 else output.masked_fill(~targets, -torch.inf).argmax(1),
            prediction=self.score.predict(output),
            score=score,
            baseline_score=baseline_score,
            baseline_index=index if references is not None else -torch.ones_like(index),
            size=tuple(inputs.shape[2:]),
            layer=cut.name,
        )

    def _is_cut(self, run: PathGradients) -> bool:
        """Whether the layer is a cut of the network, and for which carrier.

        Even one much smaller than the images will often do, and what comes before the layer then costs next to nothing.
        """
        for host_image in [*smaller(run.host_image), run.host_image]:
            run.host_image = host_image
            with isolated(self.model, seed=self.seed):  # a model may settle on the size of the images that it has seen
                if run.is_cut():
                    return True
        return False


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
