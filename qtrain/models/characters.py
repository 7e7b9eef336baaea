"""Networks over characters: a decoder-only Transformer (Radford et al. 2019, GPT-2), and an LSTM
(Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import checks
from ..layers.attention import ScaledDotProductAttention

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Causal self-attention and an MLP of 4x width, each behind a norm and beside a residual:
    (N, T, width) -> the same."""

    def __init__(self, width: int, heads: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = ScaledDotProductAttention()
        self.proj = nn.Linear(width, width)
        self.drop1 = nn.Dropout(dropout)
        self.norm2 = norm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, T, width / heads)
        y = self.attention(query, key, value, is_causal=True)
        x = x + self.drop1(self.proj(y.transpose(1, 2).flatten(2)))
        y = self.fc2(self.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.drop2(y)
        return out


class CharTransformer(nn.Module):
    """Embedding, learned positions, `depth` pre-norm blocks, a final norm and a linear head.

    (N, T) int64 -> logits (N, T, num_classes) of each next character, T at most `context`.
    dropout   of the embedding and of what each residual branch adds (not of attention weights)
    norm      what makes the norm over so many features
    ValueError or TypeError for sizes out of range, heads that do not divide the width, and, in the
    forward, for longer windows and other tokens.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        context: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = nn.LayerNorm,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "context": context, "width": width, "depth": depth}
        for what, size in {**sizes, "heads": heads}.items():
            checks.integer(what, size, low=1)
        checks.number("dropout", dropout, low=0, high=1, hint="0 is none")
        if width % heads:
            raise ValueError(f"heads: got {heads} with width {width}; need a divisor of the width")
        self.context = context
        self.embedding = nn.Embedding(num_classes, width)
        self.positions = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, norm) for _ in range(depth)))
        self.norm = norm(width)
        self.fc = nn.Linear(width, num_classes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # GPT-2's: what the 2 * depth branches add to the residual sum has its size
                last = name.endswith((".proj", ".fc2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if last else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        checks.tokens(tokens)
        length = tokens.shape[-1]
        if length > self.context:
            raise ValueError(
                f"context: got a window of {length} characters, but the model was built for at "
                f"most {self.context}"
            )
        places = torch.arange(length, device=tokens.device)
        x = self.drop(self.embedding(tokens) + self.positions(places))
        logits: Tensor = self.fc(self.norm(self.blocks(x)))
        return logits


class CharLSTM(nn.Module):
    """Embedding, nn.LSTM of `depth` layers and a linear head; the state starts at zero.

    (N, T) int64 -> logits (N, T, num_classes) of each next character, for any T.
    dropout   of the embedding, between the layers and before the head
    ValueError or TypeError for sizes out of range and, in the forward, for other tokens.
    """

    def __init__(
        self, *, num_classes: int, width: int = 128, depth: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for what, size in {"num_classes": num_classes, "width": width, "depth": depth}.items():
            checks.integer(what, size, low=1)
        checks.number("dropout", dropout, low=0, high=1, hint="0 is none")
        self.embedding = nn.Embedding(num_classes, width)
        self.drop1 = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0
        self.lstm = nn.LSTM(width, width, depth, batch_first=True, dropout=between)
        self.drop2 = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        checks.tokens(tokens)
        y, _ = self.lstm(self.drop1(self.embedding(tokens)))
        logits: Tensor = self.fc(self.drop2(y))
        return logits
