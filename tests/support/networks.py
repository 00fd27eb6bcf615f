"""Small seeded networks that stand for the families of real ones, and cases made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in eval mode with reproducible weights that let the image through, and used BatchNorm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                nn.init.normal_(module.bias, 0, 0.1) if module.bias is not None else None
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.3, 1.0)
    return model.eval()


class Block(nn.Module):
    """A residual block as torchvision writes it: in-place ReLU, in-place addition."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.shortcut(x)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu2(out)


class ResNet(nn.Module):
    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.layer2 = nn.Sequential(Block(12, 16, 2), Block(16, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class VGG(nn.Module):
    """Blocks of convolutions between poolings, and a head of two layers that no pooling makes linear."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(16 * 49, 24), nn.ReLU(inplace=True), nn.Linear(24, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Pooled(nn.Module):
    """Convolutions, global average pooling and one linear layer: what Grad-CAM's pooling was made for."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block that normalises first, its residual stream going round both parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches and a class token, from which alone the logits are computed."""

    def __init__(
        self, channels: int = 3, classes: int = CLASSES, width: int = 16, patch: int = 4, depth: int = 3
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(Attention(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


class UNet(nn.Module):
    """An encoder and a decoder with a skip connection round the bottom, then a classifier."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2)
        self.merge = nn.Sequential(nn.Conv2d(20, 9, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(9, classes)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.fc(self.merge(torch.cat([self.up(self.bottom(skip)), skip], 1)).mean((2, 3)))


class Wrapped(nn.Module):
    """A model whose input or output is changed on the way."""

    def __init__(
        self,
        model: nn.Module,
        after: Callable[[Tensor], Any] = lambda output: output,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.model = model
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.model(self.before(x)))


@dataclass(frozen=True)
class Case:
    """A model, a layer of it that is a cut, images to explain and images to compare them with."""

    model: nn.Module
    layer: str
    inputs: Tensor
    baselines: Tensor
    target: Tensor

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.layer)


@dataclass(frozen=True)
class Trained:
    """A network that was trained for a moment, and images of its test set."""

    model: nn.Module
    inputs: Tensor
    baselines: Tensor
    target: Tensor
