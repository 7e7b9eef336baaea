"""How a tensor lies in memory, as the key of a plan."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """A tensor but for its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        return cls(x.shape, x.stride(), x.dtype)

    def on_meta(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")

    def new(self, like: Tensor) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=like.device)

    @property
    def is_wide(self) -> bool:
        """Whether a place in it, a tile beyond its end included, passes int32."""
        spans = ((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return sum(spans) >= 2**30
