"""An int8 convolution as one operation of torch, also in the graphs that it compiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound, there
from quantizers.kernels.gpu.launcher import Launch

from ..convolved import new_result, tile_of
from ..layout import Layout, in_units, steps_of

KERNELS = "qtrain.products.engines.gpu.int8.triton_convolution"
PREPARE = "qtrain.products.engines.gpu.int8.triton_prepare"
_SUMMED_LAST = (0, 3, 4, 1, 2)


class Window(NamedTuple):
    """How w moves over x (see geometry), and what there is besides.

    size             of the result's two axes
    layout           of the result: see new_result
    scattered        whether it is the transpose
    shifted          whether there is a zero point
    scales           what a step from channel to channel is in each of them; their dtypes
    biased           whether there is a bias
    """

    size: tuple[int, ...]
    layout: str
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    scattered: bool
    shifted: bool
    scales: tuple[tuple[int, torch.dtype], ...]
    biased: bool


def _dtype(scaled: bool) -> torch.dtype:
    """Of the result."""
    return torch.float32 if scaled else torch.int32


def summed_last(x: Tensor) -> Tensor:
    """With the summed channels, axis 2, one after the other in memory."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    back = [_SUMMED_LAST.index(axis) for axis in range(5)]
    return x.permute(_SUMMED_LAST).contiguous().permute(back)


class Planned(NamedTuple):
    """The launches of a convolution, for operands of one layout each.

    result           of the convolution
    moves_x, moves_w whether the operand's copy with the summed channels last is what is read
    copied           x as int8, padded by the zero point; None: x itself is read
    sums             how many there are of w; 0: none is asked for
    """

    result: Layout
    moves_x: bool
    moves_w: bool
    copied: Layout | None
    sums: int
    prepare: tuple[Launch, tuple[int, int, int]] | None
    convolve: tuple[Launch, tuple[int, int, int]] | None

    def __call__(
        self,
        x: Tensor,
        w: Tensor,
        result: Layout,
        zero_point: Tensor | None,
        scales: Sequence[Tensor],
        bias: Tensor | None,
    ) -> Tensor:
        """result: the same memory under another shape; x, w: their memory is read."""
        y = result.new(x)
        if self.convolve is None:
            return y
        with there(x):
            sums = w
            shift = w if zero_point is None else zero_point
            if self.prepare is not None:
                launch, grid = self.prepare
                sums = torch.empty((self.sums,), dtype=torch.int32, device=x.device)
                copy = x if self.copied is None else self.copied.new(x)
                launch(grid, x, w, copy, sums, shift)
                x = copy
            one, other = (*scales, w, w)[:2]
            launch, grid = self.convolve
            launch(grid, x, w, y, one, other, w if bias is None else bias, shift, sums)
        return y


@lru_cache(maxsize=4096)
def planned(x: Layout, w: Layout, by: Window) -> Planned:
    """x (N, G, C, H, W), w (G, P, C, R, S): int8, x also uint8."""
    given, weight = x.on_meta(), w.on_meta()
    y = new_result(given, weight, by.size, by.layout, _dtype(bool(by.scales)))
    result = Layout.of(y)
    if y.numel() == 0:
        return Planned(result, False, False, None, 0, None, None)
    moved = summed_last(weight)
    moves_w, weight = moved is not weight, moved
    batch, groups, produced, out_height, out_width = y.shape
    rows, taps = batch * out_height * out_width, weight.shape[3] * weight.shape[4]
    unsigned, padding = x.dtype is torch.uint8, by.padding
    copied, moves_x, summed = None, False, given.shape[2]
    tall, across, warps = tile_of(rows, produced, groups)
    deep = 128 if summed >= 256 else 64 if summed > 32 else 32
    blocks = -(-summed // deep)
    prepare = None
    steps_w = steps_of(weight, 0, 1, 3, 4)
    if by.shifted and (unsigned or not by.scattered):
        pads = (0, 0) if by.scattered else by.padding
        _, _, _, height, width = given.shape
        tall_x, wide_x = height + 2 * pads[0], width + 2 * pads[1]
        shape = batch, tall_x, wide_x, groups, summed
        lies = torch.empty(shape, dtype=torch.int8, device="meta")
        copied = Layout.of(lies)
        padding = padding if by.scattered else (0, 0)
        pixels, channels = batch * tall_x * wide_x, groups * summed
        beside = 128 if channels > 64 else 64 if channels > 32 else 32
        down = 16384 // beside
        programs = -(-pixels // down) * -(-channels // beside)
        sizes, steps = (pixels, height, width, tall_x, wide_x), steps_of(given, 0, 1, 3, 4)
        read = lies.permute(0, 3, 4, 1, 2)
    else:
        read, pads = summed_last(given), (0, 0)
        moves_x = read is not given
        programs, channels, beside, down, sizes, steps = 0, 0, 128, 128, (0,) * 5, [0] * 4
    if by.shifted:
        runs, step_c = -(-summed // 128), given.stride(2)
        unit, (channels, each, *steps) = in_units(channels, summed, *steps, *steps_w)
        launch = Launch(
            PREPARE, "prepare",
            (programs, produced, each, *steps[4:], weight.shape[4], runs, bound(taps * runs),
             sizes[0], channels, *sizes[1:], *steps[:2], step_c, *steps[2:4], *pads),
            WIDE=x.is_wide or (copied is not None and copied.is_wide), UNIT=unit,
            LAST=step_c == 1, UNSIGNED=unsigned, PIXELS=down, CHANNELS=beside, DEEP=128,
            num_warps=8,
        )  # fmt: skip
        prepare = launch, (programs + groups * produced, 1, 1)
    one, other, *_ = *(step for step, _ in by.scales), 0, 0
    unit, (each, *steps) = in_units(summed, *steps_of(read, 0, 1, 3, 4), *steps_w)
    out, (columns, y_n, y_g, y_h, y_w) = in_units(produced, *steps_of(y, 0, 1, 3, 4))
    numbers = (
        rows, columns, each, *read.shape[3:], out_height, out_width, *steps, y_n, y_g, y.stride(2),
        y_h, y_w, one, other, *by.stride, *padding, *by.dilation, weight.shape[4], 128 * unsigned,
        blocks, bound(taps * blocks),
    )  # fmt: skip
    launch = Launch(
        KERNELS, "convolve", numbers, WIDE=Layout.of(read).is_wide or result.is_wide, UNIT=unit,
        OUT=out, LAST=y.stride(2) == 1, SCATTER=by.scattered, AFFINE=by.shifted,
        FILLED=by.shifted and by.scattered, SCALES=len(by.scales), BIASED=by.biased, ROWS=tall,
        ACROSS=across, DEEP=deep, BAND=8, num_warps=warps, num_stages=3, **OPTIONS,
    )  # fmt: skip
    tiles = -(-rows // tall) * -(-produced // across) * groups
    return Planned(
        result, moves_x, moves_w, copied, math.prod(w.shape[:2]) if by.shifted else 0, prepare,
        (launch, (tiles, 1, 1)),
    )  # fmt: skip


def window_of(
    size: Sequence[int],
    layout: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scattered: bool,
    shifted: bool,
    scales: Sequence[Tensor],
    biased: bool,
) -> Window:
    return Window(
        tuple(size), layout, tuple(stride), tuple(padding), tuple(dilation), scattered, shifted,
        tuple((scale.stride(0), scale.dtype) for scale in scales), biased,
    )  # fmt: skip


def _convolve(
    x: Tensor,
    w: Tensor,
    size: list[int],
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scattered: bool,
    zero_point: Tensor | None,
    scales: list[Tensor],
    bias: Tensor | None,
) -> Tensor:
    """x, w and what is returned, (N, G, P, *size), fp32 where there is a scale: see convolve."""
    given = zero_point is not None, scales, bias is not None
    by = window_of(size, layout, stride, padding, dilation, scattered, *given)
    found = planned(Layout.of(x), Layout.of(w), by)
    if found.convolve is not None:
        w = summed_last(w) if found.moves_w else w
        x = summed_last(x) if found.moves_x else x
    bias = None if bias is None else bias.contiguous()
    return found(x, w, found.result, zero_point, scales, bias)


def _shape(x: Tensor, w: Tensor, size: list[int], layout: str, *others: Any) -> Tensor:
    return new_result(x, w, size, layout, _dtype(bool(others[-2])))


convolve_int8 = register(
    "qtrain::convolve_int8(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_point, Tensor[] scales,"
    " Tensor? bias) -> Tensor",
    _convolve,
    _shape,
    "CPU",
    "CUDA",
)
