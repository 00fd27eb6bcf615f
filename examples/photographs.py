"""Pretrained networks, and the photographs that they are asked about: what ``compare_methods.py`` runs on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from egcam_lightning.explain.candidates import observe
from egcam_lightning.explain.layer_search import telling_sample
from egcam_lightning.explain.split_model import SplitModel, host_image_like
from egcam_lightning.replaying import photographs as replaying

# Of known networks: the layers that methods are tried at, and which of them are cuts whose maps may be added up.
LAYERS: dict[str, tuple[tuple[str, ...], int]] = {
    "resnet50": (("layer2", "layer3", "layer4"), 3),
    "mobilenet_v2": (("features.6", "features.13", "features.18"), 3),
    # The last is customary and no cut: a residual connection goes around it.
    "deit_tiny": (("blocks.2", "blocks.5", "blocks.9", "blocks.11.norm1"), 3),
    "deit_tiny_patch16_224": (("blocks.2", "blocks.5", "blocks.9", "blocks.11.norm1"), 3),
    "cifar_resnet20": (("layer1", "layer2", "layer3"), 3),
}


class UnusableInputError(ValueError):
    """What was handed over cannot be used; the message says what to write instead."""


@dataclass(frozen=True)
class Photograph:
    """A picture with its class: a name that tells it from the others, and how it is opened, as a PIL image."""

    name: str
    label: int
    open: Callable[[], Image.Image]


@dataclass(frozen=True, eq=False)
class Net:
    """A classifier that is ready to be explained.

    Attributes:
        name: what it was asked for by.
        model: from images ``(B, 3, H, W)`` to logits ``(B, K)``, in evaluation mode.
        transform: from a PIL image to ``(3, H, W)``.
        layers: where single maps are taken.
        pairs: layers whose maps are averaged.

    """

    name: str
    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    layers: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def images(self, photographs: Sequence[Photograph]) -> Tensor:
        """The model's inputs, ``(N, 3, H, W)``."""
        return torch.stack([self.transform(photograph.open()) for photograph in photographs])

    @property
    def normalisation(self) -> dict[str, Any]:
        """Mean and standard deviation as the transform has them; nothing where it does not say."""
        steps = [self.transform, *reversed(getattr(self.transform, "transforms", []))]
        known = (step for step in steps if hasattr(step, "mean") and hasattr(step, "std"))
        return next(
            ({"mean": torch.as_tensor(s.mean).tolist(), "std": torch.as_tensor(s.std).tolist()} for s in known), {}
        )


def load(name: str, folder: Path, labels: Path | None, layers: Sequence[str] | None) -> tuple[Net, list[Photograph]]:
    """A network with its photographs.

    Args:
        name: of torchvision, or of timm; in a folder with a ``nets.py``, a name that its ``load`` knows.
        folder: class folders, or files that ``labels`` lists, or a folder with a ``nets.py``.
        labels: a line ``file class-index`` for each photograph.
        layers: where to explain; ``None`` for the known ones, or three cuts in the last two thirds of the network.

    Raises:
        UnusableInputError: for an unknown network, photographs without labels, and labels that do not fit.

    """
    if not folder.is_dir():
        raise UnusableInputError(f"--images {folder} is no folder. Write the folder that holds the photographs.")
    own = (folder / "nets.py").is_file()
    if own:
        model, transform, photographs = _from_nets(name, folder)
    else:
        photographs = _listed(folder, labels) if labels else in_class_folders(folder)
        model, transform = _pretrained(name)
    if len(photographs) < 3:
        raise UnusableInputError(f"{folder} holds {len(photographs)} photographs: hand over some hundred.")
    model = model.eval()
    sample = torch.stack([transform(photograph.open()) for photograph in photographs[:2]])
    with torch.no_grad():
        logits = model(sample)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UnusableInputError(f"{name} gives no logits (N, K): name a classifier with --nets.")
    classes = {photograph.label for photograph in photographs}
    by_folder = not own and labels is None
    if max(classes) >= logits.shape[1] or (by_folder and len(classes) != logits.shape[1]):
        seen = f"{len(classes)} class folders" if by_folder else f"labels up to {max(classes)}"
        raise UnusableInputError(
            f"{name} has {logits.shape[1]} classes, but {folder} has {seen}. Name a network of these classes with "
            "--nets, or write the network's class index of each file into a list and pass it as --labels FILE."
        )
    known, cuts = LAYERS.get(name, ((), 0))
    chosen = tuple(layers or known or even_cuts(model, sample))
    missing = [layer for layer in chosen if layer not in dict(model.named_modules())]
    if missing:
        raise UnusableInputError(
            f"{name} has no layer {missing[0]!r}: expected names as in model.named_modules(), such as "
            f"{', '.join(even_cuts(model, sample))}. Write --layers with names that it has, or leave it out."
        )
    cut_layers = chosen[:cuts] if chosen == known else chosen
    return Net(name, model, transform, chosen, tuple(combinations(cut_layers, 2))), photographs


def even_cuts(model: nn.Module, images: Tensor, count: int = 3) -> tuple[str, ...]:
    """Names of layers that nothing bypasses, evenly over the last two thirds of a network, the last one included."""
    images, _ = telling_sample(images)
    candidates, _, _ = observe(model, model, images)
    distinct = {candidate.tensor: candidate for candidate in candidates}  # of a block and its container, the latter
    host = host_image_like(images)
    cuts = []
    for candidate in distinct.values():
        split = SplitModel(candidate.module, candidate.name, model, candidate.axis)
        if split.holds(*split.capture(images), host):
            cuts.append(candidate.name)
    if not cuts:
        raise UnusableInputError("No layer was found that nothing bypasses. Write the layers to explain as --layers.")
    places = [round((len(cuts) - 1) * (index + 1) / count) for index in range(count)]
    return tuple(dict.fromkeys(cuts[place] for place in places))


def from_nets(name: str, folder: Path) -> tuple[Any, nn.Module, Any]:
    """A folder's ``nets.py``, and its network of a name with the transform.

    Raises:
        UnusableInputError: for a name that it does not know.

    """
    spec = importlib.util.spec_from_file_location("nets", folder / "nets.py")
    nets: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    try:
        return nets, *nets.load(name)
    except KeyError as error:
        raise UnusableInputError(f"{folder / 'nets.py'}: {error.args[0]}. Write one of these as --nets.") from None


def _from_nets(name: str, folder: Path) -> tuple[nn.Module, Any, list[Photograph]]:
    """What ``nets.py`` in a folder loads: its networks, and its photographs of ImageNet or, by name, of CIFAR-10."""
    nets, model, transform = from_nets(name, folder)
    if not name.startswith("cifar"):
        return model, transform, [Photograph(p.name, int(k), partial(open_rgb, p)) for p, k in nets.imagenet()]
    test = nets.cifar10()
    pixels = test.test_images.permute(0, 2, 3, 1).numpy()
    return (
        model,
        transform,
        [
            Photograph(f"{row:05d}", int(label), partial(Image.fromarray, pixels[row]))
            for row, label in enumerate(test.test_labels)
        ],
    )


def _pretrained(name: str) -> tuple[nn.Module, Any]:
    """Torchvision's network of that name, or else timm's, with the transform that goes with its weights."""
    from torchvision import models

    unknown = (
        f"There is no network {name!r} in torchvision{{}}. Write a name of torchvision.models.list_models() or of "
        "timm.list_models(pretrained=True) as --nets."
    )
    try:
        if name in models.list_models(module=models):
            weights = models.get_model_weights(name).DEFAULT
            return models.get_model(name, weights=weights), weights.transforms()
        if importlib.util.find_spec("timm") is None:
            raise UnusableInputError(unknown.format(", and timm is not installed (pip install timm)"))
        import timm

        if not timm.is_model(name):
            raise UnusableInputError(unknown.format(" or timm"))
        model = timm.create_model(name, pretrained=True)
        return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    except (OSError, RuntimeError) as error:  # no network, a proxy, a full disk
        raise UnusableInputError(
            f"The weights of {name!r} could not be fetched ({error}). Fetch them where there is a network: torchvision "
            "and timm keep them in ~/.cache and find them there."
        ) from error


def open_rgb(path: Path) -> Image.Image:
    """A photograph's colours."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def in_class_folders(folder: Path) -> list[Photograph]:
    """The photographs of a folder of class folders; classes are numbered by the folders' sorted names.

    Raises:
        UnusableInputError: where there are none.

    """
    return _read(folder, lambda: replaying.in_class_folders(folder)[0])


def _listed(folder: Path, labels: Path) -> list[Photograph]:
    """The photographs of a folder that a list names, each with its class."""
    return _read(folder, lambda: replaying.listed(folder, labels))


def _read(folder: Path, find: Callable[[], Sequence[tuple[Path, int]]]) -> list[Photograph]:
    try:
        found = find()
    except ValueError as error:
        raise UnusableInputError(str(error)) from None
    return [Photograph(path.relative_to(folder).as_posix(), label, partial(open_rgb, path)) for path, label in found]
