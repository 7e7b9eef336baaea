"""The networks whose training step is timed: residual networks, a ViT, a decoder block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import ScaledDotProductAttention
from qtrain.models import resnet18, resnet50


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and the data it is timed on.

    sample    the shape of one input, without the batch axis
    classes   of its cross-entropy; None: a block, whose outputs are regressed on noise and whose
              inputs need a gradient, as they do inside a network
    batch     the default batch size
    images    whether inputs are images, so that channels_last is a layout for them
    """

    name: str
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    classes: int | None
    batch: int
    images: bool = True

    def data(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random inputs (batch, *sample) and targets, the same on every call."""
        generator = torch.Generator().manual_seed(batch)
        inputs = torch.randn(batch, *self.sample, generator=generator).to(device)
        if self.classes is None:
            target = torch.randn(batch, *self.sample, generator=generator).to(device)
            return inputs.requires_grad_(), target
        return inputs, torch.randint(self.classes, (batch,), generator=generator).to(device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.classes is None:
            return F.mse_loss(output.float(), target)
        return F.cross_entropy(output.float(), target)


class Block(nn.Module):
    """A pre-norm Transformer block: (batch, tokens, width) -> the same shape."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention = ScaledDotProductAttention()
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        seen = self.attention(query, key, value, is_causal=self.causal)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """A vision transformer, mean pooling: (batch, 3, size, size) -> (batch, classes)."""

    def __init__(
        self, *, size: int, patch: int, width: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return out


def names() -> list[str]:
    """The names that `get` takes."""
    return list(_make(quick=True))


def get(name: str, *, quick: bool = False) -> Network:
    """A network by name; quick: the same layers, tiny."""
    return _make(quick=quick)[name]


@functools.cache
def _make(*, quick: bool) -> dict[str, Network]:
    width, tokens = (32, 8) if quick else (512, 256)
    small, large = (8, 32) if quick else (32, 224)
    channels = 8 if quick else 64
    classes = 10 if quick else 1000
    vit = (
        functools.partial(ViT, size=large, patch=16, width=32, depth=2, heads=2, classes=classes)
        if quick
        else functools.partial(
            # DeiT-Ti's sizes (Touvron et al. 2020, arXiv 2012.12877)
            ViT, size=large, patch=16, width=192, depth=12, heads=3, classes=classes
        )
    )  # fmt: skip
    networks = (
        Network(
            name="resnet18",  # as on CIFAR-10
            make=functools.partial(resnet18, num_classes=10, stem="cifar", width=channels),
            sample=(3, small, small),
            classes=10,
            batch=4 if quick else 64,
        ),
        Network(
            name="resnet18-imagenet",
            make=functools.partial(resnet18, num_classes=classes, width=channels),
            sample=(3, large, large),
            classes=classes,
            batch=4 if quick else 16,
        ),
        Network(
            name="resnet50",
            make=functools.partial(resnet50, num_classes=classes, width=channels),
            sample=(3, large, large),
            classes=classes,
            batch=4 if quick else 8,
        ),
        Network(
            name="vit",
            make=vit,
            sample=(3, large, large),
            classes=classes,
            batch=2 if quick else 16,
            images=False,  # beyond the patches all is (batch, tokens, width)
        ),
        Network(
            name="transformer-block",  # decoder only: 8 x 256 = 2048 tokens
            make=functools.partial(Block, width, 2 if quick else 8, causal=True),
            sample=(tokens, width),
            classes=None,
            batch=2 if quick else 8,
            images=False,
        ),
    )
    return {network.name: network for network in networks}
