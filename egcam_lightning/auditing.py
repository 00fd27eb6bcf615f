"""The audit without a fit: a model and images in, findings, a page and rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from egcam_lightning.explain.config import ExplainerConfig
from egcam_lightning.findings.audit import audit_with
from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.files import replace_file
from egcam_lightning.report.audit import render_audit


@dataclass(frozen=True, eq=False)
class Audit(AuditRecord):
    """What :func:`audit` returns: an :class:`~egcam_lightning.findings.records.AuditRecord` that can be shown.

    Attributes:
        mean: what was subtracted from the images, for display.
        std: what they were divided by.

    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """One self-contained page.

        Args:
            path: where it is written as well; ``None`` for nowhere.

        Returns:
            The page.

        """
        page = render_audit(self, self.mean, self.std)
        if path is not None:
            replace_file(Path(path), page.encode())
        return page


def audit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    baselines: Tensor | None = None,
    *,
    masks: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    target_layer: str | nn.Module = "auto",
    num_samples: int = 2,
    seed: int = 0,
    forward_fn: Callable[..., Any] | None = None,
    output_key: str | int | None = None,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    chunk_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Audit:
    """Test which classes a model calls because of a patch alone: a tag, a logo, a corner of the scanner.

    Of each class the windows that say most for it are pasted into images of other classes. Where many of these are
    then called by the class, more than with windows at random places, that is a :class:`~egcam_lightning.Finding`.
    What the images of a class share is tried too: their borders, their colours, what they have in common, such as a
    watermark, and a piece that some of them repeat, beside those of other classes. It takes about twelve passes an
    image; the model is left exactly as it was. A texture, a blur or noise on all images of a class no audit sees.

    Args:
        model: a classifier.
        images: ``(N, C, H, W)``, as the model takes them; a few hundred, balanced over the classes, not trained on.
        labels: ``(N,)`` integers; ``None`` for what the model predicts.
        baselines: ``(R, C, H, W)``, images to explain against and to paste into; ``None`` for the audited ones.
        masks: ``(N, H, W)`` bool, where the objects are, which patches then leave out: one that holds a small object
            calls its class rightly. ``None`` where that is not known: look what the patches show.
        class_names: a name for each class.
        target_layer: whose maps say where to look; ``"auto"`` for the last with a fine grid.
        num_samples: draws of each map.
        seed: of draws, places and pastes.
        forward_fn: ``forward_fn(model, images)`` to call the model.
        output_key: where the logits are in the model's output.
        reshape_transform: from the layer's activation to ``(N, K, h, w)``, where its layout cannot be inferred.
        chunk_size: images that go through the model at once.
        mean: what was subtracted from the images, so that the page shows their colours.
        std: what they were divided by.

    Returns:
        The findings and all that was tested.

    Raises:
        ValueError: for several labels an image, a segmentation, a regression, or images of several sizes, none of which
            can be audited; the message says why.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> corner = nn.Conv2d(1, 2, 8)  # class 1 is what has a bright corner
        >>> with torch.no_grad():
        ...     _ = corner.weight.zero_(), corner.bias.copy_(torch.tensor([0.5, 0.0]))
        ...     corner.weight[1, 0, 5:, 5:] = 1 / 9
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), corner, nn.Flatten())
        >>> _ = model[0].weight.data.fill_(1), model[0].bias.data.zero_()
        >>> images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4
        >>> images[16:, :, 5:, 5:] += 0.6
        >>> result = audit(model, images, torch.arange(32) // 16, class_names=["plain", "tagged"])
        >>> ("tagged", "capture") in [(finding.class_name, finding.kind) for finding in result]
        True

    """
    config = ExplainerConfig(
        target_layer=target_layer,
        num_samples=num_samples,
        seed=seed,
        forward_fn=forward_fn,
        output_key=output_key,
        reshape_transform=reshape_transform,
        chunk_size=chunk_size,
    )
    record = audit_with(model, config, images, labels, baselines, masks=masks, class_names=class_names, seed=seed)
    values: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(AuditRecord)}
    values["mean"] = None if mean is None else tuple(mean)
    values["std"] = None if std is None else tuple(std)
    return Audit(**values)
