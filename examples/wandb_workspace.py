"""Everything that W&B can show of a run: panels, overlays, a table, the timeline page, and alerts.

It trains the quickstart's network with a planted shortcut, so that the alert on ``consensus`` goes off. The run stays
offline unless you are logged in; ``wandb sync`` sends it later. How to lay out a workspace from its keys is in
docs/loggers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning.pytorch as pl
from digits import DigitsData, SmallCNN
from quickstart import make_logger

from egcam_lightning import ExpectedGradCAMCallback


def main(argv: list[str] | None = None) -> ExpectedGradCAMCallback:
    """Train, and send all there is to see."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--clean", action="store_true", help="plant no shortcut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the run is kept")
    args = parser.parse_args(argv)
    pl.seed_everything(args.seed)
    logger = make_logger("wandb", args.out)
    callback = ExpectedGradCAMCallback(
        masks_key="mask",
        max_overhead=None,
        seed=args.seed,
        log_page_every=2,
        alerts={"consensus": 0.95, "drift/significant": 0.5},
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs, logger=logger, callbacks=[callback], default_root_dir=args.out, log_every_n_steps=10
    )
    trainer.fit(SmallCNN(stride=2), datamodule=DigitsData(not args.clean, seed=args.seed))
    print(f"The run: {logger.experiment.url or logger.experiment.dir}")
    return callback


if __name__ == "__main__":
    main()
