"""A grad_weight on 16-bit tensor cores as one operation of torch, also in compiled graphs."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.by_device import register
from quantizers.kernels.gpu.device import INTERPRETED, OPTIONS, bound, there
from quantizers.kernels.serving import imported

from .layout import Layout

KERNELS = "qtrain.products.engines.gpu.triton_gradient"
#: steps that a part of the sum has at least, and bytes that a tile's loads may have on their way
_STEPS, _AHEAD = 16, 2**16


class _Tile(NamedTuple):
    """See triton_gradient.gradient; apart: programs that a multiprocessor is to have at once."""

    tall: int
    across: int
    taps: int
    packed: bool
    warps: int
    apart: int
    deep: int = 32

    def options(self, g: int, x: int) -> dict[str, int]:
        """Of a launch; g, x: bytes of their elements."""
        loads = self.deep * (self.tall * g + self.taps * self.across * x)
        return {"num_warps": self.warps, "num_stages": 4 if 3 * loads <= _AHEAD else 3}


def _tile(produced: int, channels: int, height: int, width: int) -> _Tile:
    if channels < 32 and height * width > 1:
        return _Tile(64, 32 if channels * height * width <= 32 else 64, 1, True, 4, 2)
    if width == 3:
        return _Tile(64, 64, 3, False, 4, 2)
    if min(produced, channels) >= 128:
        return _Tile(128, 128, 1, False, 8, 2)
    return _Tile(64, 64, 1, False, 4, 3)


@cache
def _multiprocessors(device: torch.device) -> int:
    if INTERPRETED:
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _result(g: Tensor, x: Tensor, kernel: list[int], last: bool) -> Tensor:
    (groups, produced), channels = g.shape[1:3], x.shape[2]
    if last:
        y = g.new_empty((groups, produced, *kernel, channels), dtype=torch.float32)
        return y.permute(0, 1, 4, 2, 3)
    return g.new_empty((groups, produced, channels, *kernel), dtype=torch.float32)


def _laid(x: Tensor, half: torch.dtype) -> Tensor:
    """(N, G, C, H, W), channels one after the other in memory: x, or a copy, in the 16-bit dtype
    where x is floating point."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    whole = x.permute(0, 3, 4, 1, 2)
    dtype = half if x.is_floating_point() else x.dtype
    y = torch.empty(whole.shape, dtype=dtype, device=x.device).copy_(whole)
    return y.permute(0, 3, 4, 1, 2)


def _pitch(x: Tensor) -> int | None:
    """How far apart x's rows (n, h, w) lie; None where that varies."""
    found = reach = None
    for axis in (4, 3, 0):
        size, step = x.shape[axis], x.stride(axis)
        if size == 1:
            continue
        if reach is not None and step != reach:
            return None
        found, reach = step if found is None else found, size * step
    return 0 if found is None else found


def _gradient(
    g: Tensor,
    x: Tensor,
    kernel: list[int],
    last: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    half: torch.dtype,
    g_zero: Tensor | None,
    x_zero: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """fp32 (G, O, C, *kernel), c innermost in memory where `last`.

    g: (N, G, O, H, W), x: (N, G, C, *S), numbers that `half` holds once the zero points, 0-d, are
    taken off; scale: one number.
    """
    launched = imported(KERNELS)
    y = _result(g, x, kernel, last)
    groups, produced, channels = y.shape[:3]
    batch, (out_height, out_width) = g.shape[0], g.shape[3:]
    rows, taps = batch * out_height * out_width, kernel[0] * kernel[1]
    if rows == 0 or y.numel() == 0:
        return y.zero_()
    with there(x):
        g, x = _laid(g, half), _laid(x, half)
        g_m = _pitch(g)
        if g_m is None:
            g = g.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
            g_m = groups * produced
        tile = _tile(produced, channels, *kernel)
        tall, across, deep = tile.tall, tile.across, tile.deep
        columns = -(-channels * taps // across)
        if not tile.packed:
            columns = -(-channels // across) * (taps // tile.taps)
        tiles = groups * -(-produced // tall) * columns
        steps = -(-rows // deep)
        parts = max(min(tile.apart * _multiprocessors(x.device) // tiles, steps // _STEPS), 1)
        steps = -(-steps // parts)
        parts = -(-rows // (steps * deep))
        into, part = y, 0
        if parts > 1:
            shape = parts, groups, produced, *kernel, channels
            into = torch.empty(shape, dtype=torch.float32, device=x.device)
            part, into = into.stride(0), into[0].permute(0, 1, 4, 2, 3)
        x_w = _pitch(x) if taps == 1 and stride == [1, 1] and padding == [0, 0] else None
        flat = x_w is not None and x.shape[3:] == g.shape[3:]
        nothing = y if scale is None else scale
        launched.gradient[(tiles * parts,)](
            g,
            x,
            into,
            y if g_zero is None else g_zero,
            y if x_zero is None else x_zero,
            nothing,
            rows,
            produced,
            channels,
            *x.shape[3:],
            out_height,
            out_width,
            g_m,
            g.stride(1),
            *(x.stride(axis) for axis in (0, 1, 3)),
            x_w if flat else x.stride(4),
            part,
            *into.stride(),
            *stride,
            *padding,
            *dilation,
            taps,
            kernel[1],
            tiles,
            bound(steps),
            G_AFFINE=g_zero is not None,
            X_AFFINE=x_zero is not None,
            SCALED=scale is not None and parts == 1,
            FLAT=flat,
            PACKED=tile.packed,
            TAPS=tile.taps,
            BF16=half is torch.bfloat16,
            WIDENED=INTERPRETED,
            WIDE=Layout.of(g).is_wide or Layout.of(x).is_wide,
            TALL=tall,
            ACROSS=across,
            DEEP=deep,
            **tile.options(g.itemsize, x.itemsize),
            **OPTIONS,
        )
        if parts == 1:
            return y
        down = 16 if parts > 4 else 4
        wide = 2048 // down
        launched.add[(-(-y.numel() // wide),)](
            into,
            y,
            nothing,
            parts,
            y.numel(),
            produced,
            channels,
            taps,
            kernel[1],
            *y.stride(),
            bound(-(-parts // down)),
            SCALED=scale is not None,
            DOWN=down,
            ACROSS=wide,
            num_warps=4,
            **OPTIONS,
        )
    return y


def _shape(g: Tensor, x: Tensor, kernel: list[int], last: bool, *others: object) -> Tensor:
    return _result(g, x, kernel, last)


grad_weight_half = register(
    "qtrain::grad_weight_half(Tensor g, Tensor x, int[] kernel, bool last, int[] stride,"
    " int[] padding, int[] dilation, ScalarType half, Tensor? g_zero, Tensor? x_zero,"
    " Tensor? scale) -> Tensor",
    _gradient,
    _shape,
    "CPU",
    "CUDA",
)
