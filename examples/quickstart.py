"""Watch a small network learn where to look, in three minutes on two cores and with nothing to download.

Run it as it is; then once more with ``--shortcut``, and see the network look at the tag that gives the label away.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from digits import CIFAR10Data, DigitsData, SmallCNN, tag_mask
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from egcam_lightning import ExpectedGradCAMCallback, History
from egcam_lightning.metrics.functional import relevance_mass


class Accuracy(pl.Callback):
    """Remembers the validation accuracy of each epoch, for the table."""

    def __init__(self) -> None:
        self.by_epoch: dict[int, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what the epoch gave."""
        if not trainer.sanity_checking:
            self.by_epoch[trainer.current_epoch] = float(trainer.callback_metrics["val/accuracy"])


def make_logger(kind: str, out: Path) -> Logger:
    """The logger called ``kind``. W&B stays offline where nobody is logged in."""
    if kind == "wandb":
        from requests.utils import get_netrc_auth  # where `wandb login` puts its key

        key = os.environ.get("WANDB_API_KEY") or get_netrc_auth("https://api.wandb.ai")
        out.mkdir(parents=True, exist_ok=True)
        return WandbLogger(project="egcam-quickstart", save_dir=out, offline=not key)
    return {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[kind](out, name="quickstart")


def table(history: History, accuracy: dict[int, float], shortcut: bool) -> str:
    """One line a snapshot: what the network knew, and where it looked."""
    columns = {
        "completeness gap": "completeness_gap",
        "drift": "drift/previous",
        "noise floor": "drift/noise_floor",
        "consensus": "consensus",
    }
    masks = history.probe.masks
    if masks is not None:
        columns["relevance on the digit"] = "relevance_mass"
    names = ["epoch", "accuracy", *columns, *(["relevance on the tag"] if shortcut else [])]
    rows = [names]
    for snapshot in history.snapshots:
        start = snapshot.when == "start"
        values: list[float | None] = [None if start else accuracy.get(snapshot.epoch)]
        values += [snapshot.metrics.get(key) for key in columns.values()]
        if shortcut:
            tag = tag_mask().expand(len(snapshot.attribution), -1, -1)
            values.append(float(relevance_mass(snapshot.attribution, tag).nanmean()))
        rows.append(["start" if start else str(snapshot.epoch), *("-" if v is None else f"{v:.3f}" for v in values)])
    if masks is not None:
        uniform = ["a uniform map", *[""] * len(columns), f"{float(masks.float().mean()):.3f}"]
        rows.append([*uniform, f"{float(tag_mask().float().mean()):.3f}"] if shortcut else uniform)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(argv: list[str] | None = None) -> ExpectedGradCAMCallback:
    """Train, and say where the network looked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", choices=["digits", "cifar10"], default="digits", help="cifar10 needs a network")
    parser.add_argument("--shortcut", action="store_true", help="plant a tag that gives the label away (digits)")
    parser.add_argument("--logger", choices=["csv", "tensorboard", "wandb"], default="csv")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    args = parser.parse_args(argv)
    digits = args.data == "digits"
    if args.shortcut and not digits:
        parser.error("--shortcut plants its tag on the digits: leave out --data cifar10")

    pl.seed_everything(args.seed)
    data: Any = (
        DigitsData(args.shortcut, seed=args.seed) if digits else CIFAR10Data(args.out / "cifar10", seed=args.seed)
    )
    accuracy = Accuracy()
    # Every epoch has its snapshot, whatever share of so short a run it takes.
    callback = ExpectedGradCAMCallback(masks_key="mask" if digits else None, max_overhead=None, seed=args.seed)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=make_logger(args.logger, args.out),
        callbacks=[callback, accuracy, ModelCheckpoint(save_top_k=-1)],  # one an epoch, to look at after the fact
        default_root_dir=args.out,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(SmallCNN(stride=2 if digits else 1), datamodule=data)

    print(f"\n{table(callback.history, accuracy.by_epoch, args.shortcut)}\n")
    folder = Path(callback.run_dir)
    if pictures := sorted(folder.glob("panels/*.png")):
        print(f"The last picture:  {pictures[-1]}")
    else:
        print(f"The pictures:      in {args.logger}, under {args.out}")
    print(f"The whole story:   {folder / 'report.html'}")
    print(f"The checkpoints:   {trainer.checkpoint_callback.dirpath}")
    return callback


if __name__ == "__main__":
    main()
