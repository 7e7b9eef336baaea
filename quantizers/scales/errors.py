"""How far values are from what they stand for, block by block: what candidates are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..granularity import compact_shape


def error_of(values: Tensor, x: Tensor, block: Sequence[int], by: str) -> Tensor:
    """The error of each block by one of `Scale.by`; NaN for "cosine" where either is 0.

    values, x: fp64, one shape -> fp64, one entry a block.
    """
    if by == "cosine":
        pairs = (values, x), (values, values), (x, x)
        dot, own, other = (folded(a * b, block, torch.add) for a, b in pairs)
        return 1 - dot / (own * other).sqrt()
    error = (values - x).abs()
    if by == "absmax":
        return folded(error, block, torch.maximum)
    return folded(error if by == "mae" else error * error, block, torch.add)


def folded(x: Tensor, block: Sequence[int], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The elements of each block combined, in an order that the shape alone decides: along each
    axis in turn the second half onto the first, again and again.  A short block ends in zeros."""
    shape = compact_shape(x.shape, block)
    for axis, (count, size) in enumerate(zip(shape, block, strict=True)):
        missing = count * size - x.shape[axis]
        if missing:
            rest = x.new_zeros([*x.shape[:axis], missing, *x.shape[axis + 1 :]])
            x = torch.cat([x, rest], axis)
        x = x.unflatten(axis, (count, size))
        while (size := x.shape[axis + 1]) > 1:
            half = -(-size // 2)
            first, second = x.narrow(axis + 1, 0, half), x.narrow(axis + 1, half, size - half)
            both = combine(first.narrow(axis + 1, 0, size - half), second)
            x = torch.cat([both, first.narrow(axis + 1, size - half, 2 * half - size)], axis + 1)
        x = x.squeeze(axis + 1)
    return x
