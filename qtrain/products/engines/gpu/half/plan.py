"""How the kernels of a grad_weight are launched: from shapes, strides and dtypes alone."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

from quantizers.kernels.gpu.device import INTERPRETED, OPTIONS, bound
from quantizers.kernels.gpu.launcher import Launch

from ..layout import is_wide, pitch

KERNELS = "qtrain.products.engines.gpu.half.triton_gradient"
#: bytes that a tile's loads may have on their way
_AHEAD = 2**16
_Five = tuple[int, int, int, int, int]


class Operand(NamedTuple):
    """A tensor as (N, G, C, H, W): its sizes and steps in memory."""

    sizes: _Five
    steps: _Five

    @classmethod
    def of(cls, shape: tuple[int, ...], steps: tuple[int, ...], groups: int) -> Operand:
        """Images (N, groups * C, H, W), or matrices (N, rows, C) or (rows, C), of one group, or of
        a group each where `groups` is 0."""
        if len(shape) == 4:
            (n, channels, *space), (first, step, *apart) = shape, steps
            one, (height, width), (down, right) = channels // groups, space, apart
            return cls((n, groups, one, height, width), (first, one * step, step, down, right))
        (count, rows, channels), (each, row, step) = (1, *shape)[-3:], (0, *steps)[-3:]
        if groups:
            return cls((count, 1, channels, 1, rows), (each, 0, step, 0, row))
        return cls((1, count, channels, 1, rows), (0, each, step, 0, row))


class Tile(NamedTuple):
    """See triton_gradient.gradient; apart: programs that a multiprocessor is to have at once."""

    tall: int
    across: int
    taps: int
    packed: bool
    warps: int
    apart: int
    deep: int = 32

    @classmethod
    def of(cls, produced: int, channels: int, height: int, width: int) -> Tile:
        if channels < 32 and height * width > 1:
            return cls(64, 32 if channels * height * width <= 32 else 64, 1, True, 4, 2)
        if width == 3:
            return cls(64, 64, 3, False, 4, 2)
        if min(produced, channels) >= 128:
            return cls(128, 128, 1, False, 8, 2)
        return cls(64, 64, 1, False, 4, 3)

    def options(self, g: int, x: int) -> dict[str, int]:
        """Of a launch; g, x: bytes of their elements."""
        loads = self.deep * (self.tall * g + self.taps * self.across * x)
        return {"num_warps": self.warps, "num_stages": 4 if 3 * loads <= _AHEAD else 3}


class Planned(NamedTuple):
    """The launches of a grad_weight, and their programs.

    partial   numbers of all parts of the sum, which `add` adds; 0: there is one part
    """

    gradient: tuple[Launch, tuple[int, int, int]]
    add: tuple[Launch, tuple[int, int, int]] | None
    partial: int


class Tensors(NamedTuple):
    """What a launch follows from; see gradient.gradient.

    g, x, y   shape and strides;  sizes: of an element of g and x, bytes
    least     steps that a part of the sum has at least
    shifted   whether g, and x, has a zero point;  scaled: whether there is a scale
    """

    g: tuple[tuple[int, ...], tuple[int, ...]]
    x: tuple[tuple[int, ...], tuple[int, ...]]
    y: tuple[int, ...]
    sizes: tuple[int, int]
    groups: int
    kernel: tuple[int, ...]
    window: tuple[int, ...]
    processors: int
    least: int
    half: torch.dtype
    shifted: tuple[bool, bool]
    scaled: bool


@lru_cache(maxsize=4096)
def planned(of: Tensors) -> Planned | None:
    """None where g's rows are not evenly apart."""
    g, x = (Operand.of(*t, of.groups) for t in (of.g, of.x))
    g_m = pitch(*g)
    if g_m is None:
        return None
    kernel, window, y = of.kernel, of.window, of.y
    if not kernel:
        kernel, window, y = (1, 1), (1, 1, 0, 0, 1, 1), (*y, 0, 0)
    (batch, groups, produced, *out), channels = g.sizes, x.sizes[2]
    rows, taps = batch * math.prod(out), math.prod(kernel)
    tile = Tile.of(produced, channels, *kernel)
    columns = -(-channels * taps // tile.across)
    if not tile.packed:
        columns = -(-channels // tile.across) * (taps // tile.taps)
    tiles = groups * -(-produced // tile.tall) * columns
    steps = -(-rows // tile.deep)
    parts = max(min(tile.apart * of.processors // tiles, steps // of.least), 1)
    steps = -(-steps // parts)
    parts = -(-rows // (steps * tile.deep))
    x_n, x_g, _, x_h, x_w = x.steps
    even = pitch(*x) if taps == 1 and window[:4] == (1, 1, 0, 0) else None
    flat = even is not None and x.sizes[3:] == g.sizes[3:]
    if flat and even is not None:
        x_w = even
    row = taps * channels
    size = groups * produced * row
    place = (
        (0, *y) if parts == 1 else (size, produced * row, row, 1, kernel[1] * channels, channels)
    )
    numbers = (
        rows, produced, channels, *x.sizes[3:], *out, g_m, g.steps[1], x_n, x_g, x_h, x_w, *place,
        *window, taps, kernel[1], tiles, bound(steps),
    )  # fmt: skip
    gradient = Launch(
        KERNELS, "gradient", numbers, G_AFFINE=of.shifted[0], X_AFFINE=of.shifted[1],
        SCALED=of.scaled and parts == 1, FLAT=flat, PACKED=tile.packed, TAPS=tile.taps,
        BF16=of.half is torch.bfloat16, WIDENED=INTERPRETED, WIDE=is_wide(*g) or is_wide(*x),
        TALL=tile.tall, ACROSS=tile.across, DEEP=tile.deep, **tile.options(*of.sizes), **OPTIONS,
    )  # fmt: skip
    first = gradient, (tiles * parts, 1, 1)
    if parts == 1:
        return Planned(first, None, 0)
    down = 16 if parts > 4 else 4
    across = 2048 // down
    add = Launch(
        KERNELS, "add",
        (parts, size, produced, channels, taps, kernel[1], *y, bound(-(-parts // down))),
        SCALED=of.scaled, DOWN=down, ACROSS=across, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return Planned(first, (add, (-(-size // across), 1, 1)), parts * size)
