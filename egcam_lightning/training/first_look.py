"""The first look: at the data, for images and baselines, and at the model, for the layer. What is wrong shows here."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from egcam_lightning.data.loaders import SampleReader
from egcam_lightning.data.probe import Probe, build_probe, is_batch
from egcam_lightning.data.targets import known_targets
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.candidates import clean_name
from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.sharding import whole
from egcam_lightning.explain.split_model import first_tensor, hooked
from egcam_lightning.metrics.registry import build_metrics, needs_masks
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.lightning_compat import to_model, validation_source
from egcam_lightning.training.probe_display import probe_images
from egcam_lightning.training.snapshotter import Snapshotter


def read_data(fit: Fit) -> tuple[Probe | None, Tensor | None]:
    """Read the images to explain and the first baselines, as far as the data can be indexed and memory suffices.

    Where they do not, the first batches that pass by will do.
    """
    trainer, module, config = fit.trainer, fit.module, fit.config
    reader = SampleReader(trainer, module)
    validation, training = (partial(to_model, trainer, module, validating=flag) for flag in (True, False))
    loader = validation_source(trainer)
    if loader is None:
        loader = trainer.train_dataloader
        if not is_batch(config.probe):
            rank_zero_warn("There are no validation data: training images are explained instead.")
    guard, keys, baselines = fit.failsafe.guard, config.keys, fit.run_state.baselines

    def read() -> tuple[Probe | None, Tensor | None]:
        with fit.isolated():
            probe = build_probe(reader, loader, config.probe, config.num_images, keys, validation, guard)
            return probe, baselines.collect(reader, trainer.train_dataloader, keys.input_key, training, guard)

    try:
        return fit.process_group.run_or_raise_everywhere(read)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fit.failsafe.report("reading images to explain", error)
        return None, None


def look_at_model(fit: Fit, probe: Probe) -> tuple[Snapshotter, str]:
    """Find the layer for a probe, and settle the classes as far as they are known.

    Returns:
        What takes the snapshots, and a sentence's part that says of what.

    Raises:
        ValueError: where the user's settings do not fit the model or the data.
        MisconfigurationException: where the module cannot be called with images, and where each process has a part of
            the layer that it does not know to be one.

    """
    module, config, run_state = fit.module, fit.config, fit.run_state
    run_state.adopt(probe)
    assert run_state.probe is not None
    probe = run_state.probe
    explainer = ExpectedGradCAM(module, **fit.explainer.arguments())
    inputs = probe.inputs(torch.arange(min(len(probe), 4)), module.device)
    with fit.isolated(), torch.no_grad():
        output = explainer.logits(fit.attempt(*inputs))
        known = known_targets(config.target, probe.labels, len(probe), output, explainer.score)
        explainer.score.check(output, known if known is None or known.ndim == 1 else known[: len(output)])
        layer = explainer.perturbation.at(explainer.find(*inputs))
        fast = explainer.is_fast(*inputs)
        _check_that_layers_are_whole(fit, str(explainer.layer), inputs)
    if config.target == "label" and probe.labels is None and explainer.score.takes_labels:
        fit.failsafe.inform(
            "No labels were found in the batches: the class that the model predicts is explained of each image. Pass "
            "`label_key` where there are some, or target='predicted'."
        )
    if probe.targets is None and known is not None:
        run_state.probe = probe = probe.with_targets(known)
    metrics = build_metrics(config.metrics, masks=config.keys.masks_key is not None or probe.masks is not None)
    if probe.masks is None and any(map(needs_masks, metrics.values())):
        metrics = {key: metric for key, metric in metrics.items() if not needs_masks(metric)}
        fit.failsafe.warn(
            "The checkpoint was written without `masks_key`, and its images, which are explained on, have no "
            "masks: no metrics are taken that need them. Begin a new run to have them."
        )
    assert explainer.grid is not None
    grid = explainer.grid
    shown = probe_images(fit.trainer, module, probe, config.class_names, config.normalization)
    if not shown.restored:
        fit.failsafe.inform(
            "The normalisation of the images was not found, so each is shown stretched to its own range. Pass `mean` "
            "and `std` to ExpectedGradCAMCallback for their colours."
        )
    run_state.show(shown, layer, grid)
    snapshotter = Snapshotter(explainer, metrics, fit.process_group, module.device, config.seed)
    return snapshotter, (
        f"{len(probe)} images at layer {layer!r} (grid {'x'.join(map(str, grid))}), on paths between "
        + ("its activations" if fast else "images, each draw a pass through the whole network")
    )


def _check_that_layers_are_whole(fit: Fit, names: str, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a layer of which each process has other channels, as within a tensor-parallel block.

    Where such a layer returns a ``DTensor`` its parts are put together. Where it returns a plain tensor nothing says
    that it is a part; but then processes that make the same pass do not see the same.
    """
    group = fit.process_group
    if group.world == group.shares.count:
        return
    modules = {clean_name(name): module for name, module in fit.module.named_modules()}

    def seen(name: str) -> Tensor:
        found: list[Tensor] = []

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            assert tensor is not None
            found.append(whole(tensor).float())

        with hooked(modules[name], hook):
            fit.forward(fit.module, *inputs)
        values = found[0].flatten().double()
        return torch.stack([values.sum(), values.abs().sum(), values @ torch.arange(len(values)).to(values)])

    for name in names.split("+"):
        everywhere = group.all_gather(group.run_or_raise_everywhere(partial(seen, name)))
        if bool(((everywhere - everywhere[0]).abs() > 1e-3 * everywhere[0].abs()).any()):
            raise MisconfigurationException(
                f"The layer {name!r} is within a tensor-parallel block: each process has other channels of it. Pass a "
                "`target_layer` around it, such as the whole block, or have it return a `DTensor` "
                "(`use_local_output=False`), whose parts can be put together."
            )
