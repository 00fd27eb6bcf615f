"""Two models on the same images and baselines: where they look differently by more than noise, and what follows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from egcam_lightning.findings.records import Finding
from egcam_lightning.history.history import History
from egcam_lightning.metrics.change import floor_between
from egcam_lightning.metrics.functional.drift import rank_drift, significant
from egcam_lightning.replaying.checkpoints import AsItIs, CheckpointFile, Moment, find_checkpoints
from egcam_lightning.replaying.replay import Replayed, look_at, run_folder
from egcam_lightning.report import build_report
from egcam_lightning.report.__main__ import run_names

Weights = str | PathLike[str] | LightningModule


@dataclass(frozen=True, eq=False)
class Comparison:
    """What tells two models apart, ``N`` images.

    Attributes:
        a: a history of one snapshot, of the first model.
        b: the same of the second.
        names: what people call them.
        drift: ``(N,)``, 1 - rank correlation of the two maps of each image; of different grids on the coarser.
        floor: ``(N,)``, the drift that Monte Carlo alone can produce; ``None`` where it is not known.
        page: the page of both, side by side.

    """

    a: History
    b: History
    names: tuple[str, str]
    drift: Tensor
    floor: Tensor | None
    page: Path

    @property
    def moved(self) -> Tensor:
        """``(N,)`` bool: the images whose maps differ by more than noise; none where that is not known."""
        return torch.zeros(len(self.drift)).bool() if self.floor is None else significant(self.drift, self.floor)

    @property
    def prediction_changed(self) -> Tensor:
        """``(N,)`` bool: the images that the two predict differently."""
        return self.a[0].prediction != self.b[0].prediction

    @property
    def new_findings(self) -> tuple[Finding, ...]:
        """Findings of the second model that the first one does not have."""
        return _only(self.b, self.a)

    @property
    def gone_findings(self) -> tuple[Finding, ...]:
        """Findings of the first model that the second one does not have."""
        return _only(self.a, self.b)

    @property
    def values(self) -> dict[str, float]:
        """The numbers by key, each a mean or a count; those that are not known are left out."""
        known = torch.isfinite(self.drift)
        found = {
            "prediction_changed": float(self.prediction_changed.float().mean()),
            "findings/new": float(len(self.new_findings)),
            "findings/gone": float(len(self.gone_findings)),
        }
        if bool(known.any()):
            found["drift"] = float(self.drift[known].mean())
            if self.floor is not None:
                found["drift/noise_floor"] = float(self.floor[known].nanmean())
                found["drift/significant"] = float(self.moved[known].float().mean())
        return found

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it in words."""
        a, b = self.names
        count, moved, other = len(self.drift), int(self.moved.sum()), int(self.prediction_changed.sum())
        values = self.values
        floor = f", where chance alone makes {values['drift/noise_floor']:.2f}" if "drift/noise_floor" in values else ""
        both = int((self.moved & self.prediction_changed).sum())
        return (
            f"{b} looks elsewhere than {a} in {moved} of {count} images by more than noise"
            + (f": the maps differ by {values['drift']:.2f} on average{floor}." if "drift" in values else "."),
            f"{other} of {count} images are predicted differently"
            + (f", {both} of those among them." if other else "."),
            *(f"New in {b}: {finding.sentence}" for finding in self.new_findings),
            *(f"Gone in {b}: {finding.sentence}" for finding in self.gone_findings),
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row an image, for ``pandas.DataFrame``."""
        first, second, probe = self.a[0], self.b[0], self.a.probe
        return [
            {
                "image": index,
                "label": None if probe.labels is None else probe.name(int(probe.labels[index])),
                "target": probe.name(int(first.target[index])),
                "prediction_a": probe.name(int(first.prediction[index])),
                "prediction_b": probe.name(int(second.prediction[index])),
                "drift": float(self.drift[index]),
                "floor": None if self.floor is None else float(self.floor[index]),
                "moved": bool(self.moved[index]),
            }
            for index in range(len(self.drift))
        ]


def compare(
    a: Weights,
    b: Weights,
    module: LightningModule | None = None,
    datamodule: LightningDataModule | None = None,
    *,
    save_dir: str | PathLike[str] | None = None,
    accelerator: str = "auto",
    trust: bool = False,
    **settings: Any,
) -> Comparison:
    """Look at two models: the same images, the same baselines, and of each image the same class.

    Args:
        a: a checkpoint of ``module``, or a module with the weights that it has.
        b: the other one.
        module: what checkpoints are of.
        datamodule: the data; ``None`` where the modules have their own loaders, of which those of the first count.
        save_dir: folder for files; ``None`` for ``compare`` in the run's folder, or for modules in the current one.
        accelerator: Lightning's name of where to compute.
        trust: whether checkpoints may run code, see :func:`~egcam_lightning.replay`.
        **settings: arguments of :class:`~egcam_lightning.ExpectedGradCAMCallback`, likewise.

    Returns:
        What tells them apart.

    Raises:
        ValueError: as :func:`~egcam_lightning.replay` does; for a checkpoint without a ``module``.

    Example:
        >>> compare("a.ckpt", "b.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: Expected `module`, the LightningModule that 'a.ckpt' is a checkpoint of, but got none.

    """
    models = [_model(one, module, trust) for one in (a, b)]
    moments = (models[0][1], models[1][1])
    names = names_of(*(moment.path if isinstance(moment, CheckpointFile) else None for moment in moments))
    folder = Path(save_dir) if save_dir is not None else default_folder(moments[1], names)
    return compare_models(
        models[0], models[1], datamodule, folder, names, accelerator=accelerator, trust=trust, **settings
    )


def names_of(a: Path | None, b: Path | None) -> tuple[str, str]:
    """Name two models by what tells their files apart; ``None`` for one without a file.

    Example:
        >>> names_of(Path("version_0/last.ckpt"), Path("version_1/last.ckpt"))
        ('version_0', 'version_1')
        >>> names_of(Path("runs/first.ckpt"), Path("runs/last.ckpt"))
        ('first', 'last')

    """
    if a is None or b is None or a == b:
        return ("A", "B")
    if a.stem != b.stem:
        return (a.stem, b.stem)
    first, second = run_names([a, b])
    return (first, second)


def default_folder(moment: Moment, names: tuple[str, str]) -> Path:
    """Where the files of a comparison go."""
    root = run_folder(moment.path) if isinstance(moment, CheckpointFile) else Path()
    return root / "compare" / re.sub(r"[^\w.=-]+", "-", "-".join(names))


def compare_models(
    a: tuple[LightningModule, Moment],
    b: tuple[LightningModule, Moment],
    datamodule: LightningDataModule | None,
    folder: Path,
    names: tuple[str, str],
    **settings: Any,
) -> Comparison:
    """Look at two modules, each with its weights, and compare; see :func:`compare`."""
    first = look_at([a[1]], a[0], datamodule, folder / "a", **settings)
    snapshot = first.history[0]
    asked = settings.get("target", "label")
    if not (type(asked) is int or (asked == "label" and first.history.probe.labels is not None)):
        settings["target"] = _Settled(snapshot.target)
    second = look_at([b[1]], b[0], datamodule, folder / "b", **settings)
    return _compared(first, second, names, folder / "compare.html")


def _compared(first: Replayed, second: Replayed, names: tuple[str, str], page: Path) -> Comparison:
    one, other = first.history[0], second.history[0]
    if first.history.probe.fingerprint != second.history.probe.fingerprint:
        raise ValueError(
            "The data gave other images the second time, so the two cannot be compared: seed what is drawn in `setup`."
        )
    grid = tuple(min(sides) for sides in zip(one.attribution.shape[1:], other.attribution.shape[1:], strict=True))
    drift = rank_drift(_on(one.attribution, grid), _on(other.attribution, grid))
    build_report([first.history, second.history], page, names=names)
    return Comparison(first.history, second.history, names, drift, floor_between(other, one), page)


def _model(weights: Weights, module: LightningModule | None, trust: bool) -> tuple[LightningModule, Moment]:
    if isinstance(weights, LightningModule):
        return weights, AsItIs.of(weights)
    if module is None:
        raise ValueError(
            f"Expected `module`, the LightningModule that {str(weights)!r} is a checkpoint of, but got none."
        )
    (found,) = find_checkpoints(weights, trust=trust)
    return module, found


def _on(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Maps on a coarser grid."""
    if tuple(maps.shape[1:]) == grid:
        return maps
    pool: Callable[[Tensor, Any], Tensor] = adaptive_avg_pool3d if len(grid) == 3 else adaptive_avg_pool2d
    return pool(maps, grid)


def _only(has: History, lacks: History) -> tuple[Finding, ...]:
    known = {(f.target, f.kind) for f in (lacks.audit or ())}
    return tuple(f for f in (has.audit or ()) if (f.target, f.kind) not in known)


@dataclass(frozen=True, eq=False)
class _Settled:
    """The classes that were explained of another model."""

    target: Tensor

    def __call__(self, output: Tensor, labels: Tensor | None) -> Tensor:
        return self.target.to(output.device)
