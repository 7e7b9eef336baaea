"""An int8 convolution as one operation of torch, also in the graphs that it compiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound, there
from quantizers.kernels.gpu.launcher import Launch

from ..convolved import moves_of, new_result, tile_of
from ..layout import Layout, in_units, pitch, steps_of
from .preparation import prepared

KERNELS = "qtrain.products.engines.gpu.int8.triton_convolution"
#: elements read, from which copies whose rows are aligned are worth their launches
_MANY = 2**22
#: warps of a program, and steps whose loads are on their way
_WARPS, _AHEAD = 4, 3
_SUMMED_LAST = (0, 3, 4, 1, 2)


def _deep(summed: int) -> int:
    """Channels of a step."""
    return 128 if summed >= 256 else 64 if summed > 32 else 32


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


def lying(shape: Sequence[int], dtype: torch.dtype, pad: bool) -> Tensor:
    """(N, G, C, H, W) with C innermost; pad: and more of them, so that rows start at every 16."""
    order = [shape[axis] for axis in _SUMMED_LAST]
    if pad:
        order[-1] = -(-order[-1] // 16) * 16
    back = [_SUMMED_LAST.index(axis) for axis in range(5)]
    return torch.empty(order, dtype=dtype, device="meta").permute(back)


def read_as(x: Tensor, pad: bool) -> Tensor:
    """What of x is read: itself where its rows are in one piece, and need no pads; or a copy."""
    if not pad and (x.stride(2) == 1 or x.shape[2] == 1):
        return x
    return lying(x.shape, x.dtype, pad)


def copied(x: Tensor, to: Layout) -> Tensor:
    """x so laid out; 0 in the channels that it has not."""
    copy = to.new(x)
    if copy.shape[2] > x.shape[2]:
        copy.zero_()
    copy.narrow(2, 0, x.shape[2]).copy_(x)
    return copy


class Planned(NamedTuple):
    """The launches of a convolution, for operands of one layout each.

    result           of the convolution
    copy_x, copy_w   how the operand's copy lies that is to be given in its place, see `copied`
    padded           x as int8, padded by the zero point, which is made here; None: x is read
    sums             how many there are of w; 0: none is asked for
    """

    result: Layout
    copy_x: Layout | None
    copy_w: Layout | None
    padded: Layout | None
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
                copy = x if self.padded is None else self.padded.new(x)
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
        return Planned(result, None, None, None, 0, None, None)
    batch, groups, produced, out_height, out_width = y.shape
    rows, taps = batch * out_height * out_width, weight.shape[3] * weight.shape[4]
    unsigned, padding = x.dtype is torch.uint8, by.padding
    # read byte by byte where rows start anywhere
    terms = given.shape[2] * taps
    pad = given.shape[2] % 16 > 0 and rows * groups * terms >= _MANY
    read_w = read_as(weight, pad)
    padded, prepare = None, None
    if by.shifted and (unsigned or not by.scattered):
        edges = (0, 0) if by.scattered else padding
        size = [n + 2 * edge for n, edge in zip(given.shape[3:], edges, strict=True)]
        read = lying((*given.shape[:3], *size), torch.int8, pad)
        padded, padding = Layout.of(read), padding if by.scattered else (0, 0)
    else:
        read, edges = read_as(given, pad), (0, 0)
    if by.shifted:
        prepare = prepared(given, None if padded is None else read, read_w, edges)
    summed = read_w.shape[2]
    deep = _deep(summed)
    blocks = -(-summed // deep)
    moves = moves_of(given.shape[3:], weight.shape[3:], by.stride, padding, by.size, by.scattered)
    tall, across = tile_of(rows, produced, groups)
    one, other, *_ = *(step for step, _ in by.scales), 0, 0
    x_rows = None
    if moves == "still" and set(by.stride) == {1}:
        x_rows = pitch(read.shape, read.stride())
    y_rows = pitch(y.shape, y.stride())
    (*steps, x_w), (*steps_y, y_w) = steps_of(read, 0, 1, 3, 4), steps_of(y, 0, 1, 3, 4)
    steps += [x_w if x_rows is None else x_rows, *steps_of(read_w, 0, 1, 3, 4)]
    unit, (each, *steps) = in_units(summed, *steps)
    out, (columns, *steps_y) = in_units(produced, *steps_y, y_w if y_rows is None else y_rows)
    numbers = (
        rows, columns, each, *read.shape[3:], out_height, out_width, *steps, *steps_y[:2],
        y.stride(2), *steps_y[2:], one, other, *by.stride, *padding, *by.dilation, weight.shape[4],
        128 * unsigned, bound(taps * blocks),
    )  # fmt: skip
    launch = Launch(
        KERNELS, "convolve", numbers, WIDE=Layout.of(read).is_wide or result.is_wide, UNIT=unit,
        OUT=out, LAST=y.stride(2) == 1, MOVES=moves, X_ROWS=x_rows is not None,
        Y_ROWS=y_rows is not None, EVEN=summed % deep == 0, AFFINE=by.shifted,
        FILLED=by.shifted and by.scattered and moves != "still", SCALES=len(by.scales),
        BIASED=by.biased, ROWS=tall, ACROSS=across, DEEP=deep, BAND=8, num_warps=_WARPS,
        num_stages=_AHEAD, **OPTIONS,
    )  # fmt: skip
    tiles = -(-rows // tall) * -(-produced // across) * groups
    return Planned(
        result, None if padded is not None or read is given else Layout.of(read),
        None if read_w is weight else Layout.of(read_w), padded,
        groups * produced if by.shifted else 0, prepare, (launch, (tiles, 1, 1)),
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
    x = x if found.copy_x is None else copied(x, found.copy_x)
    w = w if found.copy_w is None else copied(w, found.copy_w)
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
