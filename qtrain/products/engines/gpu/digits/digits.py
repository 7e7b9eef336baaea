"""Integers as digits to the base 256, in fp16, and what sums of digits stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import OPTIONS, bound, power_of_two
from quantizers.kernels.gpu.launcher import launched

from ..layout import Layout, in_units, steps_of

KERNELS = "qtrain.products.engines.gpu.digits.triton_digits"
#: the largest magnitude of an element
REACH = 2**16
#: elements of a program that puts digits together
_BLOCK = 1024


class Cut(NamedTuple):
    """digits, largest: how many digits to the base 256 an operand has, and their magnitude."""

    digits: int
    largest: int

    @classmethod
    def of(cls, reach: int) -> Cut:
        return cls(1, reach) if reach <= 256 else cls(2, max((reach + 128) >> 8, 128))


def length(one: Cut, other: Cut, limit: int) -> int:
    """Products of two digits that add up to less than the limit."""
    return (limit - 1) // max(one.largest * other.largest, 1)


def dtype_of(reach: int) -> torch.dtype:
    """Which keeps sums that reach so far."""
    return torch.int32 if reach < 2**31 else torch.float64


def digits(
    x: Tensor, zero_point: Tensor | None, count: int, outer: int, padding: int = 0
) -> Tensor:
    """x, of 5 axes, less its zero point, as fp16 in C order, its digits along a new axis, which
    comes before the axis `outer`, 0 or 1; padding: zeros at both ends of axis 2."""
    sizes = [*x.shape[:2], x.shape[2] + 2 * padding, *x.shape[3:]]
    shape = [*sizes[:outer], count, *sizes[outer:]]
    y = torch.empty(shape, dtype=torch.float16, device=x.device)
    rows, channels = math.prod(sizes[:4]), sizes[4]
    if y.numel() == 0:
        return y
    # few kinds of kernels: each is compiled
    across = 64 if channels > 32 else 16
    down = 4096 // across
    first = math.prod(sizes[1:]) * (count if outer else 1)
    unit, (each, *steps) = in_units(channels, *steps_of(x, 0, 1, 2, 3), first, y.stride(outer))
    launched(
        KERNELS, "digits", (-(-rows // down) * -(-channels // across), 1, 1), x, y,
        x if zero_point is None else zero_point, rows, each, *sizes[1:4], x.shape[2], padding,
        *steps[:4], x.stride(4), *steps[4:], WIDE=Layout.of(x).is_wide or Layout.of(y).is_wide,
        AFFINE=zero_point is not None, TWO=count == 2, UNIT=unit,
        ADJACENT=x.stride(4) == 1 or channels == 1, PIXELS=down, CHANNELS=across, num_warps=8,
    )  # fmt: skip
    return y


def combine(
    parts: Tensor,
    left: int,
    right: int,
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    per_channel: bool,
) -> None:
    """parts (splits, left digits, ..., right digits, channels) -> y, of 5 axes."""
    size, splits = y.numel(), parts.shape[0]
    together = min(power_of_two(splits), 8)
    block = _BLOCK // together
    adjacent = y.stride(4) == 1 or y.shape[4] == 1
    unit, (channels, *steps) = in_units(y.shape[4], *parts.stride()[:2], *steps_of(y, 0, 1, 2, 3))
    launched(
        KERNELS, "combine", (-(-size // block), 1, 1), parts, y, parts if scale is None else scale,
        parts if bias is None else bias.contiguous(), size, channels, splits,
        bound(-(-splits // together)), *steps[:2], *y.shape[1:4], *steps[2:], y.stride(4),
        scale.stride(0) if scale is not None and per_channel else 0,
        WIDE=Layout.of(parts).is_wide or Layout.of(y).is_wide, LEFT=left, RIGHT=right, UNIT=unit,
        ADJACENT=adjacent, SCALED=scale is not None, BIASED=bias is not None, TOGETHER=together,
        BLOCK=block, **OPTIONS,
    )  # fmt: skip


def is_folded(groups: int, channels: int, wide: int, dilation: Sequence[int]) -> bool:
    """Whether the taps of a row, `wide`, are taken as channels: they lie so in memory, and few
    channels alone fill no tile."""
    return groups == 1 and channels <= 16 and wide > 1 and dilation[1] == 1


def folded(x: Tensor, wide: int, step: int) -> Tensor:
    """A view of x (digits, N, H, W, 1, C): at each W where a window starts, the window's channels.
    -> (digits, N, H, windows, 1, wide * C)."""
    count, batch, height, width, _, channels = x.shape
    size = max((width - wide) // step + 1, 0)
    *outer, across, _, _ = x.stride()
    return x.as_strided(
        (count, batch, height, size, 1, wide * channels), (*outer, step * across, channels, 1)
    )
