"""Vision models as people build them, small and with random weights, and the layer that one would choose in each.

Where two layers hold the same evidence the deepest counts: the final norm behind the last stage of a Swin, the ReLU
behind the last convolution of a VGG. In transformers that read one token it is an early block, before that token has
taken everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """A model and what is expected of it.

    Attributes:
        build: makes the model.
        layer: the name of the layer that a practitioner would choose.
        side: the images' side.
        cheap: whether it is in the default run.
        score: what is explained, where the output is no logits.

    """

    build: Callable[[], nn.Module]
    layer: str
    side: int = 224
    cheap: bool = False
    score: Any = "logit"


def torchvision_model(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import get_model

        if name in ("googlenet", "inception_v3"):
            kwargs.update(init_weights=False, aux_logits=True)
        return get_model(name, weights=None, num_classes=CLASSES, **kwargs)

    return build


def timm_model(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **kwargs)

    return build


def hugging_face_model(kind: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **config)
        return getattr(transformers, f"{kind}ForImageClassification")(settings)

    return build


class UNet(nn.Module):
    """A segmentation network: three scales down and up again, with connections around the deeper ones."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._block(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(self._block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    @staticmethod
    def _block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x if not skips else self.pool(x))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([self.resize(x), skip], 1))
        return self.head(x)


def mean_score(output: Tensor, target: Tensor) -> Tensor:
    """Of a segmentation ``(B, classes, H, W)``: the mean logit of a class over the image, ``(B,)``."""
    return output.mean((2, 3)).gather(1, target[:, None])[:, 0]


_TINY_TOKENS = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}

ARCHITECTURES: dict[str, Architecture] = {
    # torchvision
    "resnet18": Architecture(torchvision_model("resnet18"), "layer4", cheap=True),
    "resnet50": Architecture(torchvision_model("resnet50"), "layer4"),
    "resnext50": Architecture(torchvision_model("resnext50_32x4d"), "layer4"),
    "wide_resnet50": Architecture(torchvision_model("wide_resnet50_2"), "layer4"),
    "vgg11": Architecture(torchvision_model("vgg11"), "features.19"),
    "vgg11_bn": Architecture(torchvision_model("vgg11_bn"), "features.27"),
    "densenet121": Architecture(torchvision_model("densenet121"), "features"),
    "googlenet": Architecture(torchvision_model("googlenet"), "inception5b"),
    "inception_v3": Architecture(torchvision_model("inception_v3"), "Mixed_7c", side=320),
    "mobilenet_v2": Architecture(torchvision_model("mobilenet_v2"), "features", side=320),
    "mobilenet_v3_small": Architecture(torchvision_model("mobilenet_v3_small"), "features", side=320, cheap=True),
    "efficientnet_b0": Architecture(torchvision_model("efficientnet_b0"), "features", side=320),
    "efficientnet_v2_s": Architecture(torchvision_model("efficientnet_v2_s"), "features", side=320),
    "regnet_y_400mf": Architecture(torchvision_model("regnet_y_400mf"), "trunk_output", side=320),
    "shufflenet_v2": Architecture(torchvision_model("shufflenet_v2_x0_5"), "conv5", cheap=True),
    "squeezenet": Architecture(torchvision_model("squeezenet1_1"), "features", cheap=True),
    "mnasnet": Architecture(torchvision_model("mnasnet0_5"), "layers", side=320),
    "convnext_tiny": Architecture(torchvision_model("convnext_tiny"), "features"),
    "vit_b_32": Architecture(torchvision_model("vit_b_32"), "encoder.layers.encoder_layer_2"),
    "swin_t": Architecture(torchvision_model("swin_t"), "norm"),
    "swin_v2_t": Architecture(torchvision_model("swin_v2_t"), "norm", side=256),
    "maxvit_t": Architecture(torchvision_model("maxvit_t"), "blocks.3"),
    # timm
    "timm_vit": Architecture(timm_model("vit_tiny_patch16_224", depth=4, embed_dim=96), "blocks.0", cheap=True),
    "timm_deit_distilled": Architecture(timm_model("deit_tiny_distilled_patch16_224"), "blocks.2"),
    "timm_vit_registers": Architecture(timm_model("vit_small_patch14_reg4_dinov2", img_size=224, depth=4), "blocks.0"),
    "timm_swin": Architecture(timm_model("swin_tiny_patch4_window7_224"), "norm"),
    "timm_convnext": Architecture(timm_model("convnext_atto"), "stages"),
    "timm_efficientnet": Architecture(timm_model("efficientnet_b0"), "bn2", side=320),
    "timm_beit": Architecture(timm_model("beit_base_patch16_224", embed_dim=192, num_heads=3), "blocks.11"),
    "timm_eva02": Architecture(timm_model("eva02_tiny_patch14_224"), "blocks.11"),
    "timm_hybrid": Architecture(timm_model("vit_tiny_r_s16_p8_224"), "blocks.2"),
    # Hugging Face
    "hf_vit": Architecture(hugging_face_model("ViT", **_TINY_TOKENS), "vit.layers.0", cheap=True),
    "hf_swin": Architecture(
        hugging_face_model("Swin", embed_dim=24, depths=[2, 2, 2], num_heads=[2, 4, 8]), "swin.layernorm", cheap=True
    ),
    "hf_convnext": Architecture(
        hugging_face_model("ConvNext", hidden_sizes=[24, 48, 96, 192], depths=[1, 1, 3, 1]), "convnext.encoder"
    ),
    # connections around the layer
    "unet": Architecture(UNet, "up.1", side=112, cheap=True, score=mean_score),
}


def make(architecture: Architecture) -> nn.Module:
    """Build a model whose random weights let an image through to the output.

    What starts at zero or next to it (heads, the scales of residual branches) is drawn anew, and BatchNorm takes its
    statistics from one batch of noise: with those it starts with, the deeper nets give every image the same logits.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = architecture.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-4:
                nn.init.trunc_normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif parameter.ndim == 1 and name.endswith(("gamma", "gamma_1", "gamma_2", "layer_scale_parameter")):
                nn.init.ones_(parameter)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        if norms:
            for norm in norms:
                norm.momentum = None
                norm.reset_running_stats()
            model.train()
            model(torch.randn(8, 3, architecture.side, architecture.side))
    return model.eval()
