"""Networks by name, and weights from a file: what is audited where there is no Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.replaying.checkpoints import check_fits, read_checkpoint

Transform = Callable[[Any], Tensor]

LIBRARIES = ("torchvision", "timm")


def is_named(text: str) -> bool:
    """Whether ``text`` names a network of a library, as ``timm:resnet18`` does.

    Example:
        >>> is_named("timm:resnet18"), is_named("my.module:Net")
        (True, False)

    """
    return text.partition(":")[0] in LIBRARIES and ":" in text


def named_network(name: str, weights: Mapping[str, Tensor] | None = None) -> tuple[nn.Module, Transform]:
    """A network of a library, with the transform that its images take.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        weights: its weights; ``None`` for the library's own.

    Raises:
        ValueError: for a name that the library does not have, and where its weights are not at hand.

    """
    library, _, name = name.partition(":")
    make = _of_torchvision if library == "torchvision" else _of_timm
    try:
        network, transform = make(name, own=weights is None)
        classes = None if weights is None else _classes(network.state_dict(), weights)
        return (network, transform) if classes is None else make(name, own=False, num_classes=classes)
    except ImportError as error:
        raise ValueError(f"{library} is not installed: pip install {library}.") from error
    except (OSError, RuntimeError) as error:  # no network, a proxy, a full disk
        if weights is not None:
            raise
        raise ValueError(
            f"The weights of {library}:{name} could not be fetched ({error}). Fetch them where there is a network: "
            "torchvision and timm keep them in ~/.cache and find them there. Or pass a file of weights, and the "
            f"network as --model {library}:{name}."
        ) from error


def read_weights(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Read weights alone: a ``.safetensors`` file, or a state dict by ``torch.save``.

    What wraps them (``state_dict``, ``model``) is looked into.

    Raises:
        ValueError: where the file is damaged, unsafe to read, or holds no weights.

    """
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(
                f"{path} is read by safetensors, which is not installed: pip install safetensors."
            ) from error
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no file of safetensors: {error}") from error
    content: Any = read_checkpoint(path, trust=trust)
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"{path} holds no weights, but {', '.join(map(str, list(content)[:4])) or 'nothing'}.")
    return weights


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a network weights from a file, in the type that it has.

    Raises:
        ValueError: where they are another network's; names the keys that differ.

    """
    check_fits(network.state_dict(), weights, path, type(network).__name__)
    network.load_state_dict(weights)


def usual_transform(size: int = 224) -> Transform:
    """Resize, crop the middle, and normalise as on ImageNet: what most networks take."""
    from torchvision.transforms import v2

    return v2.Compose(  # type: ignore[no-any-return]
        [
            v2.Resize(round(size * 256 / 224)),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def _of_torchvision(name: str, *, own: bool, **options: int) -> tuple[nn.Module, Transform]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no network {name!r}: write one of torchvision.models.list_models().")
    weights = models.get_model_weights(name).DEFAULT
    return models.get_model(name, weights=weights if own else None, **options).eval(), weights.transforms()


def _of_timm(name: str, *, own: bool, **options: int) -> tuple[nn.Module, Transform]:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}: write one of timm.list_models(pretrained=True).")
    network = timm.create_model(name, pretrained=own, **options)
    return network.eval(), timm.data.create_transform(**timm.data.resolve_model_data_config(network))


def _classes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> int | None:
    """How many classes weights are for, where that is all that tells them from those expected."""
    if expected.keys() != weights.keys():
        return None
    pairs = [(expected[key].shape, value.shape) for key, value in weights.items()]
    counts = {b[0] for a, b in pairs if a != b and a[1:] == b[1:]}
    others = [b for a, b in pairs if a[1:] != b[1:]]
    return counts.pop() if len(counts) == 1 and not others else None
