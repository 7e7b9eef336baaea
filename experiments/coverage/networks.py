"""A ViT and a Llama, small, as libraries write them: their attention, and Llama's tied head, are
products of functions, its norms their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Of heads, several of whose queries share keys and values where `shared` is above 1."""

    def __init__(self, width: int, heads: int, *, shared: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.causal = heads, shared, causal
        self.size = width // heads
        self.qkv = nn.Linear(width, width + 2 * width // shared, bias=not causal)
        self.out = nn.Linear(width, width, bias=not causal)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        own = self.heads // self.shared
        q, k, v = parts.split((self.heads, own, own), 1)
        if self.causal:
            q, k = turned(q), turned(k)
        found = F.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=self.shared > 1
        )
        return self.out(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def turned(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) of (batch, heads, tokens, size)."""
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rate
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class ViT(nn.Module):
    """(N, C, size, size) -> (N, classes): patches, blocks, the mean of their tokens."""

    def __init__(
        self, *, in_channels: int, image_size: int, classes: int, patch: int, width: int,
        depth: int, heads: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.between = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
    """As Llama's is written: Zhang and Sennrich 2019, arXiv 1910.07467."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads, shared=2, causal=True)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        inner = self.between(x)
        return x + self.down(F.silu(self.gate(inner)) * self.up(inner))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """(N, tokens) -> (N, tokens, vocabulary), by the weights of its embedding."""

    def __init__(self, *, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.Sequential(*(LlamaBlock(width, heads) for _ in range(depth)))
        self.norm = RMSNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(self.blocks(self.embedding(tokens))), self.embedding.weight)
