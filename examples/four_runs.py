"""Train the four runs that the page "Reading a timeline" reads aloud, and photograph what they leave.

Twelve minutes on one core: handwritten digits, a healthy run; one in which a tag gives every label away; one in which
it gives a single class away; and one whose learning rate is far too high.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning.pytorch as pl
from digits import TAG_COLOURS, DigitsData, DigitsOnTexture, SmallCNN, tag_mask
from lightning.pytorch.loggers import CSVLogger

from egcam_lightning import ExpectedGradCAMCallback

TAGGED = 7  # the class that the tag gives away in the third run


class TagOnOneClass(DigitsData):
    """The digits; every image of one class has a tag in the corner, and no other has."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the images, and plant the tag."""
        super().setup(stage)
        for part in (self.train, self.val):
            plant(part)


def plant(digits: DigitsOnTexture) -> None:
    """Put the tag into the lower right corner of the images of class ``TAGGED``."""
    where = tag_mask() & (digits.labels == TAGGED)[:, None, None]
    digits.images = digits.images.where(~where[:, None], TAG_COLOURS[TAGGED][None, :, None, None])
    digits.masks &= ~where


def make_run(name: str, seed: int) -> tuple[DigitsData, SmallCNN]:
    """The data and the network of a run."""
    return {
        "healthy": lambda: (DigitsData(seed=seed), SmallCNN()),
        "shortcut": lambda: (DigitsData(shortcut=True, seed=seed), SmallCNN()),
        "one-class": lambda: (TagOnOneClass(seed=seed), SmallCNN()),
        "collapse": lambda: (DigitsData(seed=seed), SmallCNN(lr=1.0)),
    }[name]()


NAMES = ("healthy", "shortcut", "one-class", "collapse")


def train(name: str, epochs: int, seed: int, out: Path) -> ExpectedGradCAMCallback:
    """One of the four runs, with its page."""
    pl.seed_everything(seed)
    data, network = make_run(name, seed)
    callback = ExpectedGradCAMCallback(masks_key="mask", max_overhead=None, seed=seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=CSVLogger(out, name=name, version=""),
        callbacks=[callback],
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
    )
    trainer.fit(network, datamodule=data)
    trainer.save_checkpoint(out / name / "last.ckpt", weights_only=True)
    accuracy = float(trainer.callback_metrics["val/accuracy"])
    print(f"{name}: accuracy {accuracy:.3f}, page {Path(callback.run_dir) / 'report.html'}")
    return callback


def photograph(page: Path, picture: Path) -> None:
    """Take the head of a page, the first class with a finding and three images, as small as a palette makes it."""
    import io
    import shutil

    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1000, "height": 900})
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-ready=true]")
        found = shown.locator(".audit .found").first
        parts = [shown.locator(".summaries"), *([found] if found.count() else [])]
        parts += [shown.locator(".row").nth(place) for place in range(3)]
        taken = [Image.open(io.BytesIO(part.screenshot())).convert("RGB") for part in parts]
        browser.close()
    sheet = Image.new("RGB", (max(one.width for one in taken), sum(one.height + 8 for one in taken)), "white")
    below = 0
    for one in taken:
        sheet.paste(one, (0, below))
        below += one.height + 8
    sheet.quantize(192, dither=Image.Dither.NONE).save(picture, optimize=True)


def main(argv: list[str] | None = None) -> dict[str, ExpectedGradCAMCallback]:
    """Train and photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=list(NAMES))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/four"), help="where the runs are kept")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="photograph the pages into DIR; wants Playwright")
    args = parser.parse_args(argv)
    callbacks = {}
    for name in args.only:
        callbacks[name] = train(name, args.epochs, args.seed, args.out)
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            photograph(Path(callbacks[name].run_dir) / "report.html", args.pictures / f"timeline-{name}.png")
    return callbacks


if __name__ == "__main__":
    main()
