"""What data say of themselves: class names, labels and normalisation, read without reading a sample."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def balanced_indices(labels: Sequence[int], count: int) -> list[int]:
    """Choose samples so that every class has as many as any other, as far as there are that many.

    Args:
        labels: the class of each sample that may be chosen.
        count: how many to choose; of more classes than that, evenly spaced ones get one each.

    Returns:
        Positions in ``labels``, ascending; those of a class evenly spaced among its own.

    Example:
        >>> balanced_indices([0, 0, 0, 0, 0, 0, 1, 2, 2], 5)
        [0, 3, 6, 7, 8]

    """
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    groups = [members[label] for label in sorted(members)]
    if count < len(groups):
        groups = [groups[i * len(groups) // count] for i in range(count)]
    quotas = [0] * len(groups)
    for _ in range(min(count, sum(map(len, groups)))):  # each goes to a class that has fewest
        open_ = [i for i, group in enumerate(groups) if quotas[i] < len(group)]
        quotas[min(open_, key=lambda i: quotas[i])] += 1
    return sorted(
        group[i * len(group) // quota] for group, quota in zip(groups, quotas, strict=True) for i in range(quota)
    )


_PURE = {"datasets", "torch", "torchvision", "timm", "transformers"}  # whose properties only look things up


def known_labels(dataset: Any) -> list[int] | None:
    """The class of every sample, where the data set keeps them, or ``None``.

    Looked for as torchvision and many others name them, in a ``TensorDataset``, and behind ``Subset``.
    """
    for name in ("targets", "labels", "label", "y"):
        labels = _classes(_stored(dataset, name), len(dataset))
        if labels is not None:
            return labels
    for tensor in reversed(getattr(dataset, "tensors", ())):
        labels = _classes(tensor, len(dataset))
        if labels is not None:
            return labels
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        labels = known_labels(inner)
        return None if labels is None else [labels[int(i)] for i in indices]
    return None


def _classes(values: Any, count: int) -> list[int] | None:
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError):
            return None
    if values.shape not in ((count,), (count, 1)) or values.is_floating_point() or values.is_complex():
        return None
    return [int(value) for value in values.reshape(-1)]


def class_names_of(*sources: Any) -> tuple[str, ...] | None:
    """Class names, or ``None`` where nothing says them.

    Found in ``classes``, ``class_names`` and ``class_to_idx``, as torchvision data sets and many others have them, in
    the ``ClassLabel`` of a Hugging Face data set, and in the ``id2label`` of a Hugging Face model.

    Args:
        *sources: where to look: data sets, data modules, modules; wrapped data sets are looked into.

    """
    for source in _unwrapped(sources):
        names = _named(_stored(source, "classes")) or _named(_stored(source, "class_names"))
        names = names or _by_number(_swapped(_stored(source, "class_to_idx")))
        features = _stored(source, "features")
        if names is None and isinstance(features, Mapping):  # of a Hugging Face data set, not of a model
            names = next(filter(None, (_named(getattr(f, "names", None)) for f in features.values())), None)
        if names is None and isinstance(source, nn.Module):
            configs = (getattr(module, "config", None) for module in source.modules())
            names = next(filter(None, (_by_number(getattr(config, "id2label", None)) for config in configs)), None)
        if names is not None:
            return names
    return None


def normalization_of(*sources: Any, images: Tensor | None = None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that images were normalised with, or ``None`` where nothing says so.

    Found in a ``Normalize`` among the transforms that a source holds (torchvision's, v1 and v2, nested as you like),
    in an image processor of Hugging Face, and in the ``pretrained_cfg`` of a timm model.

    Args:
        *sources: where to look, as in :func:`class_names_of`.
        images: ``(N, C, ...)``, as the model takes them. A *module* says what it does to images or would like them
            to be, which may be another thing than what the data are; it is believed where these bear it out:
            some are negative, and all come back to [0, 1].

    """
    for source in _unwrapped(sources):
        for mean, std in _statistics(source):
            if not isinstance(source, nn.Module) or images is None or _fits(images, mean, std):
                return mean, std
    return None


def _statistics(source: Any) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Every pair of mean and standard deviation that a source holds, those for validation first."""
    if isinstance(source, nn.Module):
        held = [*(value for value in vars(source).values() if callable(value)), *source.modules()]
    else:
        fields: dict[str, Any] = {}
        for kind in reversed(type(source).__mro__):
            fields.update(vars(kind))
        fields.update(getattr(source, "__dict__", {}))
        held = [fields[name] for name in sorted(fields, key=_validation_first)]
    for value in held:
        for step in _steps(value):
            pairs = [(getattr(step, "image_mean", None), getattr(step, "image_std", None))]
            if type(step).__name__ == "Normalize":
                pairs.append((getattr(step, "mean", None), getattr(step, "std", None)))
            for config in (getattr(step, "pretrained_cfg", None), getattr(step, "default_cfg", None)):
                if isinstance(config, Mapping):
                    pairs.append((config.get("mean"), config.get("std")))
            for mean, std in pairs:
                numbers = _numbers(mean), _numbers(std)
                if numbers[0] and numbers[1] and getattr(step, "do_normalize", True):
                    yield numbers


def _fits(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    if not images.is_floating_point() or {len(mean), len(std)} - {1, images.shape[1]} or not bool((images < 0).any()):
        return False
    shape = (1, -1, *[1] * (images.ndim - 2))
    restored = images.float() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return bool((restored > -0.02).all() and (restored < 1.02).all())  # half precision and resizing overshoot a little


def _validation_first(name: str) -> int:
    name = name.lower()
    return 0 if "val" in name or "test" in name else 2 if "train" in name else 1


def _numbers(values: Any) -> tuple[float, ...]:
    """Numbers as a tuple, empty where they are none."""
    try:
        return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).reshape(-1))
    except (TypeError, ValueError, RuntimeError):
        return ()


def _named(names: Any) -> tuple[str, ...] | None:
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, (str, int)) for name in names):
        return tuple(str(name) for name in names)
    return None


def _stored(source: Any, name: str) -> Any:
    """An attribute as a source holds it; ``None`` where there is none, or where the user's code computes it.

    A property of a data set may open a file, which is not ours to open: workers that are forked later would share it.
    """
    static = inspect.getattr_static(source, name, None)
    if isinstance(static, property) and getattr(static.fget, "__module__", "").split(".")[0] not in _PURE:
        return None
    try:
        return getattr(source, name, None)
    except Exception:  # of attributes that are computed in another way
        return None


def _swapped(mapping: Any) -> dict[Any, Any] | None:
    try:
        return {number: name for name, number in mapping.items()} if isinstance(mapping, Mapping) else None
    except TypeError:  # numbers that are none
        return None


def _by_number(mapping: Any) -> tuple[str, ...] | None:
    """Names in the order of their numbers; those that Hugging Face makes up where it was told none are none."""
    if not isinstance(mapping, Mapping) or not mapping:
        return None
    if all(str(name) == f"LABEL_{number}" for number, name in mapping.items()):
        return None
    try:
        return tuple(str(name) for _, name in sorted(mapping.items(), key=lambda item: int(item[0])))
    except (TypeError, ValueError):
        return None


def _unwrapped(sources: Sequence[Any]) -> Iterator[Any]:
    for source in sources:
        for _ in range(8):  # Subset of Subset of ...: deep enough
            if source is None:
                break
            yield source
            inner = getattr(source, "dataset", None)
            if inner is None and isinstance(getattr(source, "datasets", None), (list, tuple)):
                inner = source.datasets[0]
            source = inner if inner is not source else None


def _steps(transform: Any, depth: int = 0) -> Iterator[Any]:
    """A transform, a processor or a mapping of them, and everything inside."""
    if transform is None or depth > 8:
        return
    if isinstance(transform, Mapping):
        for name in sorted(transform, key=lambda key: _validation_first(str(key))):
            if callable(transform[name]):
                yield from _steps(transform[name], depth + 1)
        return
    yield transform
    if isinstance(transform, nn.Module):
        for child in transform.children():
            yield from _steps(child, depth + 1)
    for name in ("transforms", "transform", "image_processor"):
        inner = getattr(transform, name, None)
        for step in inner if isinstance(inner, (list, tuple)) else [inner]:
            if callable(step) and step is not transform:
                yield from _steps(step, depth + 1)
