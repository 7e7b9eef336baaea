"""Residual networks (He et al. 2015, arXiv 1512.03385) with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .. import checks
from ..layers.fused import norm_relu
from .blocks import BasicBlock, Bottleneck, Shortcut

Stem = Literal["imagenet", "cifar"]


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2` ... (each doubles the channels), mean pooling and `fc`.

    (N, in_channels, H, W) -> (N, num_classes).  Stem "imagenet": 7x7 stride 2 and max-pool;
    "cifar": 3x3 stride 1.  `zero_init_residual`, torchvision's name, starts every residual branch
    at zero, by a scale of 0 in its last norm (Goyal et al. 2017, arXiv 1706.02677, section 5.1), as
    the public code of Banner et al. 2018 does.  ValueError or TypeError for an unknown stem or a
    size below 1, TypeError where zero_init_residual is no bool.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        width: int,
        stem: Stem,
        shortcut: Shortcut = "projection",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem: got {stem!r}, allowed 'imagenet', 'cifar'")
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        for what, size in sizes.items():
            checks.integer(what, size, low=1)
        checks.boolean("zero_init_residual", zero_init_residual)
        large = stem == "imagenet"
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = len(depths)
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, width << stage, stride, shortcut))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm_relu(self.bn1, self.relu, self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


def resnet18(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-18: (N, in_channels, H, W) -> (N, num_classes)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **locals())


def resnet34(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-34: (N, in_channels, H, W) -> (N, num_classes)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **locals())


def resnet50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-50, stride on the 3x3 as in torchvision: (N, in_channels, H, W) -> (N, classes)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **locals())


def resnet20(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-20 of the CIFAR section, padding shortcuts: (N, C, H, W) -> (N, num_classes)."""
    return ResNet(BasicBlock, (3, 3, 3), stem="cifar", shortcut="padding", **locals())


def resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-56 of the CIFAR section, padding shortcuts: (N, C, H, W) -> (N, num_classes)."""
    return ResNet(BasicBlock, (9, 9, 9), stem="cifar", shortcut="padding", **locals())
