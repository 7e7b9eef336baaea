"""How a tensor lies in memory, as the key of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def is_wide(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a place in such a tensor, a tile beyond its end included, passes int32."""
    return sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) >= 2**30


def steps_of(x: Tensor, *axes: int) -> list[int]:
    """Strides of axes; 0 where one is never taken."""
    return [x.stride(axis) if x.shape[axis] > 1 else 0 for axis in axes]


def pitch(sizes: Sequence[int], steps: Sequence[int]) -> int | None:
    """How far apart the rows of (N, G, C, H, W), by n, h and w, lie; None where that varies."""
    found = reach = None
    for axis in (4, 3, 0):
        size, step = sizes[axis], steps[axis]
        if size == 1:
            continue
        if reach is not None and step != reach:
            return None
        found, reach = step if found is None else found, size * step
    return 0 if found is None else found


def in_units(*numbers: int) -> tuple[int, list[int]]:
    """16 where it divides all, else 1, and the numbers in it: what a kernel is to know of them."""
    unit = 1 if any(number % 16 for number in numbers) else 16
    return unit, [number // unit for number in numbers]


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
        return is_wide(self.shape, self.strides)
