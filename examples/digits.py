"""Real images with nothing to download: scikit-learn's handwritten digits, placed at random on textured backgrounds.

The place of each digit is known, so one can measure how much of a heatmap lies on it. With a shortcut planted, a
coloured tag in a corner gives the label away, and one can watch a model learn to look there instead.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

SIZE = 64
TAG = 10
NUM_CLASSES = 10
NUM_TRAIN = 1347  # of the 1797 digits; the others are for validation
TAG_COLOURS = torch.tensor(
    [
        [230, 25, 75],
        [60, 180, 75],
        [255, 225, 25],
        [0, 90, 220],
        [245, 130, 48],
        [145, 30, 180],
        [70, 240, 240],
        [240, 50, 230],
        [255, 255, 255],
        [0, 0, 0],
    ],
    dtype=torch.uint8,
)


def textures(count: int, generator: torch.Generator) -> Tensor:
    """Noise of four scales, half grey and half coloured, in the middle of [0, 1]: ``(count, 3, SIZE, SIZE)``."""
    total = torch.zeros(count, 3, SIZE, SIZE)
    for grid, weight in ((3, 0.10), (8, 0.06), (16, 0.04), (SIZE, 0.02)):
        grey, coloured = (torch.randn(count, depth, grid, grid, generator=generator) for depth in (1, 3))
        noise = grey + 0.7 * coloured
        total += weight * F.interpolate(noise, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (0.5 + total).clamp(0.2, 0.8)


def place(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarge digits, turn them a little and put each anywhere on an empty canvas.

    Args:
        digits: ``(N, 8, 8)`` in [0, 1].
        generator: draws size, angle and place.

    Returns:
        ``(N, SIZE, SIZE)`` in [0, 1].

    """
    count = len(digits)
    width = (34 + 14 * torch.rand(count, generator=generator)) / SIZE
    angle = 0.15 * torch.randn(count, generator=generator).clamp(-2, 2)
    centre = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - width)[:, None]
    # From a place on the canvas to the place in the digit that is shown there.
    turn = (
        torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2) / width[:, None, None]
    )
    theta = torch.cat([turn, -turn @ centre[:, :, None]], 2)
    grid = F.affine_grid(theta, [count, 1, SIZE, SIZE], align_corners=False)
    # A rim, because many digits touch the edge of their 8 x 8 pixels.
    smooth = F.interpolate(F.pad(digits, (1, 1, 1, 1))[:, None], scale_factor=6, mode="bicubic", align_corners=False)
    return F.grid_sample((1.6 * smooth - 0.3).clamp(0, 1), grid, align_corners=False)[:, 0]


def tag_mask() -> Tensor:
    """Where the tag of the shortcut is: ``(SIZE, SIZE)`` bool, the lower right corner."""
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[-TAG - 2 : -2, -TAG - 2 : -2] = True
    return mask


class DigitsOnTexture(Dataset[dict[str, Any]]):
    """Handwritten digits on textured backgrounds, as dictionaries of image, label and mask.

    ``image`` is ``(3, 64, 64)`` float, normalised; ``label`` an int; ``mask`` ``(64, 64)`` bool, true on the strokes
    of the digit.

    Args:
        split: ``"train"`` or ``"val"``: different digits.
        copies: how often each digit is there, each time in another place, size, colour and before another texture.
        shortcut: plant a tag in the lower right corner whose colour gives the label away.
        seed: what places, colours and textures are drawn with.

    """

    transform = v2.Normalize(mean=[0.5] * 3, std=[0.25] * 3)
    classes = tuple(str(digit) for digit in range(NUM_CLASSES))

    def __init__(self, split: str = "train", copies: int = 1, shortcut: bool = False, seed: int = 0) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split is {split!r}: expected 'train' or 'val'.")
        source = load_digits()
        # The digits come sorted by writer: mix them, the same way for every seed, so that splits never overlap.
        order = torch.randperm(len(source.target), generator=torch.Generator().manual_seed(0))
        order = (order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]).repeat(copies)
        generator = torch.Generator().manual_seed(2 * seed + (split == "val"))

        self.labels = torch.from_numpy(source.target).long()[order]
        strokes = place(torch.from_numpy(source.images).float()[order] / 16, generator)
        images = textures(len(order), generator)
        # Bright or dark, of any hue, and always in contrast with the background.
        colour = 0.2 * torch.rand(len(order), 3, 1, 1, generator=generator)
        bright = torch.rand(len(order), 1, 1, 1, generator=generator) < 0.5
        colour = torch.where(bright, 1 - colour, colour)
        images += strokes[:, None] * (colour - images)
        self.images = (255 * images).round().to(torch.uint8)
        self.masks = strokes > 0.3
        if shortcut:
            tag = tag_mask()
            self.images[:, :, tag] = TAG_COLOURS[self.labels][:, :, None]
            self.masks &= ~tag

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(self.images[index].float() / 255)
        return {"image": image, "label": int(self.labels[index]), "mask": self.masks[index]}


class DigitsData(pl.LightningDataModule):
    """The digits, as Lightning wants them.

    Args:
        shortcut: plant the tag, in training and validation.
        batch_size: images a batch.
        copies: how often each digit is in an epoch.
        seed: what images and their order are drawn with.

    """

    def __init__(self, shortcut: bool = False, batch_size: int = 64, copies: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()  # so that checkpoints say which data they are of
        self.shortcut, self.batch_size, self.copies, self.seed = shortcut, batch_size, copies, seed

    def setup(self, stage: str | None = None) -> None:
        """Draw the images."""
        self.train = DigitsOnTexture("train", self.copies, self.shortcut, self.seed)
        self.val = DigitsOnTexture("val", 1, self.shortcut, self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches in an order of their own each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The digits that were not trained on."""
        return DataLoader(self.val, 2 * self.batch_size)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution, normalised and rectified."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SmallCNN(pl.LightningModule):
    """Six convolutions, global average pooling, two linear layers.

    Takes batches that are dictionaries (``image``, ``label``) or pairs.

    Args:
        stride: of the first convolution. With 2, images of 64 x 64 have a last grid of 16 x 16; so have those of
            32 x 32 with 1.
        lr: the largest learning rate of its one-cycle schedule.

    """

    def __init__(self, stride: int = 2, lr: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.features = nn.Sequential(
            block(3, 32, stride),
            block(32, 48, stride=2),
            block(48, 64),
            block(64, 64),
            block(64, 64),
            block(64, 64),
        )
        self.classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, 3, H, W)``."""
        return self.classifier(self.features(images).mean((2, 3)))

    def _step(self, batch: Any, stage: str) -> Tensor:
        images, labels = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        values = {f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's training step."""
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning's validation step."""
        self._step(batch, "val")

    def configure_optimizers(self) -> Any:
        """AdamW and a one-cycle schedule over all steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.02)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CIFAR10Data(pl.LightningDataModule):
    """CIFAR-10, downloaded on first use. Batches are pairs of images and labels; there are no masks.

    Args:
        root: where the data are kept.
        batch_size: images a batch.
        seed: what the order of the images is drawn with.

    """

    def __init__(self, root: str | PathLike[str], batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.root, self.batch_size, self.seed = root, batch_size, seed

    def prepare_data(self) -> None:
        """Download, once."""
        CIFAR10(self.root, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the images."""
        as_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.49, 0.48, 0.45], [0.25] * 3)]
        augment = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        self.train = CIFAR10(self.root, train=True, transform=v2.Compose([*augment, *as_input]))
        self.val = CIFAR10(self.root, train=False, transform=v2.Compose(as_input))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in an order of their own each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any]:
        """The images that were not trained on."""
        return DataLoader(self.val, 2 * self.batch_size)
