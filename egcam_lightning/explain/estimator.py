"""Expected Grad-CAM and the family around it: from images and baselines to an :class:`Explanation`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.at_layer import AtLayer, explain_at
from egcam_lightning.explain.bound_score import bound_score
from egcam_lightning.explain.captum_interface import CaptumInterface
from egcam_lightning.explain.captured import capture_at, rows_of
from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.explain.config import ExplainerConfig
from egcam_lightning.explain.explanation import Explanation, mean_over_layers
from egcam_lightning.explain.inputs import as_tuple, check_inputs, without_history
from egcam_lightning.explain.isolation import isolated, uninitialised
from egcam_lightning.explain.layer_search import find_layers, telling_sample
from egcam_lightning.explain.model_adapter import ModelAdapter
from egcam_lightning.explain.perturbation import Perturbation, Weighting
from egcam_lightning.explain.sampling import Draws
from egcam_lightning.explain.scores import Score, ScoreName, as_score
from egcam_lightning.explain.split_model import SplitModel


class ExpectedGradCAM(CaptumInterface):
    """Explain which positions of an image a model's score comes from, relative to baseline images.

    Expected Grad-CAM (Buono et al., *Not All CAMs Are Complete*, TMLR 2026) replaces Grad-CAM's gradient at the image
    by its expectation over paths from baselines to the image. With the default perturbation the map is *complete*: it
    sums to the difference between the score of the image and the mean score of the baselines, as far as the layer is a
    cut of the network and the draws suffice; :attr:`Explanation.completeness_gap` says how far.

    The model is left exactly as it was.

    Args:
        model: the model. Explained in evaluation mode, whatever mode it is in.
        target_layer: ``"auto"`` for the mean over two layers that nothing bypasses, the last one and an earlier one
            that sees finer, where there are two and the perturbation is complete, see
            :func:`~egcam_lightning.explain.auto_layers.auto_layers`; ``"last"`` for one alone; or a module's name, or
            a module. Several in a list: calling gives the mean of their maps, :meth:`each` one explanation per layer.
        perturbation: where gradients are taken; ``None`` for :meth:`Perturbation.expected`.
        weighting: how gradients become a map, such as ``"elementwise"``, ``"channel"`` or ``"layercam"``, see
            :class:`Perturbation`; ``None`` for the perturbation's own.
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
        reshape_transform: from the layer's activation, its images first, to ``(N, K, h, w)``, where its layout cannot
            be inferred.
        chunk_size: points that go through the model at once; ``None`` chooses by their size. Halved, for good, when
            memory runs out.

    Raises:
        TypeError, ValueError: for arguments that :class:`~egcam_lightning.explain.config.ExplainerConfig` refuses.

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
        config = ExplainerConfig.from_arguments(locals())
        self.model = model
        self.target_layer = target_layer
        perturbation = perturbation or Perturbation.expected()
        self.perturbation = replace(perturbation, weighting=weighting or perturbation.weighting)
        self.num_samples = 1 if self.perturbation.single_draw else num_samples
        self.seed = seed
        self.score = as_score(score)
        self._asked_for = config.layers
        self._adapter = ModelAdapter(model, forward_fn, output_key)
        self.reshape_transform = reshape_transform
        self._given_chunk_size = chunk_size
        # Apart, because memory that images have run out of says nothing about points, nor one layer's about another's.
        self._image_chunks = Chunks(chunk_size)
        self._layers: list[AtLayer] = []
        self._size: tuple[int, ...] = ()
        self._warned_no_cut: set[str] = set()

    @property
    def chunk_size(self) -> int | None:
        """Points that go through the model at once: what was asked for, or what memory has turned out to allow."""
        return min((chunks.size for chunks in self._chunks() if chunks.size is not None), default=None)

    def _chunks(self) -> list[Chunks]:
        return [self._image_chunks, *(layer.point_chunks for layer in self._layers)]

    @property
    def layer(self) -> str | None:
        """The name of the target layer, once known; of several ``"first+second"``."""
        return "+".join(layer.split.name for layer in self._layers) or None

    @property
    def grid(self) -> tuple[int, ...] | None:
        """The grid of the maps, once known; of several layers the finest."""
        return max((layer.layout.grid for layer in self._layers), key=lambda g: torch.Size(g).numel(), default=None)

    def forward(self, images: Tensor, *others: Any) -> Any:
        """The model's output for its inputs, before anything is explained: the logits, as ``output_key`` finds them.

        That of each image alone, where the model mixes the images of a batch.
        """
        if not self._adapter.mixes_images:
            return self._adapter(images, *others)
        rows = torch.arange(len(images), device=images.device)[:, None]
        return torch.cat([self._adapter(images[row], *rows_of(others, row)) for row in rows])

    def logits(self, output: Any) -> Any:
        """Those in what the model has returned."""
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
        return bound_score(self.forward, self.score, images, target, others)

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
        lazy = uninitialised(self.model)
        if lazy is not None:
            raise ValueError(f"The model's parameter {lazy!r} has no values yet. Call the model with a batch first.")
        if self._adapter.must_take_images_alone(images, others, seed=self.seed):
            self._image_chunks.size = self._given_chunk_size = 1
            for layer in self._layers:
                layer.point_chunks.size = 1
        size = tuple(images.shape[1:])
        if not self._layers or self._size != size:
            with isolated(self.model, seed=self.seed):
                sample, rows = telling_sample(images, self.chunk_size)
                given = rows_of(others, rows.to(images.device))
                if self.reshape_transform is None:  # which need not know of formats
                    self._adapter.settle_format(sample, *given)
                forward = lambda x: self._adapter(x, *given)  # noqa: E731
                # Only complete maps can be added up, see `auto_layers`.
                several = self.perturbation.is_complete and self.reshape_transform is None
                targets = [layer.split.module for layer in self._layers] or self._asked_for
                find = partial(find_layers, self.model, forward, sample, several=several)
                found = [pair for target in targets for pair in find(target, self.reshape_transform)]
                self._layers = [
                    AtLayer(
                        model=self.model,
                        split=SplitModel(split.module, split.name, self._adapter, split.axis),
                        layout=layout,
                        perturbation=self.perturbation,
                        score=self.score,
                        num_samples=self.num_samples,
                        seed=self.seed,
                        image_chunks=self._image_chunks,
                        point_chunks=before.point_chunks if before else Chunks(self._given_chunk_size),
                    )
                    for (split, layout), before in zip_longest(found, self._layers)
                ]
                self._size = size
        return str(self.layer)

    def is_fast(self, images: Tensor, *others: Any) -> bool:
        """Whether paths run between activations, so that a draw costs only the part of the network behind the layer.

        That takes ``space="activation"`` and layers that are cuts of the network.

        Args:
            images: ``(n, C, H, W)``; the first four are used.
            *others: the model's other inputs, with a row per image.

        """
        self.find(images, *others)
        few, splits = slice(4), [layer.split for layer in self._layers]
        with torch.inference_mode(False), torch.no_grad(), isolated(self.model, seed=self.seed):
            shown = capture_at(splits, images[few], self._image_chunks, rows_of(others, few))
            cuts = [layer.find_cut(seen).is_cut for layer, seen in zip(self._layers, shown, strict=True)]
        return self.perturbation.space == "activation" and all(cuts)

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
                else, or a tuple of these. They are held fixed: a baseline is seen with those of its image, which costs
                a pass for each pair of them.
            draws: draws to use instead of the explainer's own.
            image_index: an index for each image, by which its draws are made; ``None`` for ``0 ... B - 1``.

        Returns:
            The explanation.

        Raises:
            ValueError: for inputs, baselines, targets or draws that do not fit the model or each other.

        """
        explanations = self.each(
            inputs,
            baselines,
            target,
            additional_forward_args=additional_forward_args,
            draws=draws,
            image_index=image_index,
        )
        return explanations[0] if len(explanations) == 1 else mean_over_layers(explanations)

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
        """Explain a batch of images at each of the layers, with the arguments of calling it.

        Args:
            inputs: ``(B, C, H, W)``.
            baselines: ``(R, C, H, W)``.
            target: ``(B,)`` int64, one class for all, or sets of classes.
            additional_forward_args: what the model takes besides the images.
            draws: draws to use instead of the explainer's own.
            image_index: an index for each image, by which its draws are made.

        Returns:
            One explanation per layer, in the order in which they were given.

        """
        others = as_tuple(additional_forward_args)
        check_inputs(self.perturbation, inputs, baselines, others, draws)
        with torch.inference_mode(False), torch.no_grad(), isolated(self.model, seed=self.seed):
            inputs = without_history(inputs)
            if baselines is not None:
                baselines = without_history(baselines, inputs.dtype)
            self.find(inputs, *others)
            index = list(range(len(inputs))) if image_index is None else [int(i) for i in image_index]
            if len(index) != len(inputs):
                raise ValueError(f"Expected `image_index` for {len(inputs)} images, but got {len(index)}.")
            found = explain_at(self._layers, inputs, baselines, others, target, draws, index)
        for explanation, bypassed in found:
            if not bypassed or explanation.layer in self._warned_no_cut:
                continue
            self._warned_no_cut.add(explanation.layer)
            warnings.warn(
                f"The layer {explanation.layer!r} is not a cut of the network: something bypasses it, or the model "
                "remembers its batch size. Paths run between images instead, which costs more and is less complete. "
                "Pass a `target_layer` that nothing bypasses, such as the end of a stage.",
                stacklevel=2,
            )
        return [explanation for explanation, _ in found]
