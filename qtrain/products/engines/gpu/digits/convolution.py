"""Exact convolutions of integers of up to 17 bits on fp16 tensor cores: an operation of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.devices.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound
from quantizers.kernels.gpu.launcher import launched

from ..convolved import moves_of, new_result, tile_of
from ..layout import Layout
from .digits import Cut, combine, digits, dtype_of, folded, is_folded, length

KERNELS = "qtrain.products.engines.gpu.digits.triton_convolution"


def _result(
    x: Tensor, w: Tensor, size: Sequence[int], layout: str, reach: Sequence[int],
    scale: Tensor | None,
) -> Tensor:  # fmt: skip
    sums = dtype_of(math.prod(reach) * math.prod(w.shape[2:]))
    return new_result(x, w, size, layout, sums if scale is None else torch.float32)


def _multiply(
    x: Tensor,
    w: Tensor,
    size: list[int],
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scattered: bool,
    zero_x: Tensor | None,
    zero_w: Tensor | None,
    reach: list[int],
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    y = _result(x, w, size, layout, reach, scale)
    if y.numel() == 0:
        return y
    cut_x, cut_w = Cut.of(reach[0]), Cut.of(reach[1])
    terms, alone = math.prod(w.shape[2:]), cut_x.digits == cut_w.digits == 1
    wide = w.shape[4]
    in_rows = not scattered and is_folded(w.shape[0], w.shape[2], wide, dilation)
    beside = padding[1] if in_rows else 0
    x = digits(x.permute(0, 3, 4, 1, 2), zero_x, cut_x.digits, 0, beside)
    w = digits(w.permute(0, 1, 3, 4, 2), zero_w, cut_w.digits, 1).flatten(1, 2)
    if in_rows:
        x, w = folded(x, wide, stride[1]), w.flatten(3).unsqueeze(3)
        stride, padding = [stride[0], 1], [padding[0], 0]
    x = x.flatten(0, 1)
    _, height, width, groups, summed = x.shape
    (batch, *_), produced, taps = x.shape, w.shape[1], w.shape[2] * w.shape[3]
    long = terms > length(cut_x, cut_w, 2**31)
    target = y
    if not alone:
        kept = torch.empty(
            (batch, *size, groups, produced),
            dtype=torch.int64 if long else torch.int32,
            device=x.device,
        )
        target = kept.permute(0, 3, 4, 1, 2)
    rows = batch * size[0] * size[1]
    (tall, across), deep = tile_of(rows, produced), 64 if summed > 32 else 32
    warps = 8 if tall * across >= 128 * 128 else 4
    short, blocks = length(cut_x, cut_w, 2**24), -(-summed // deep)
    moves = moves_of((height, width), w.shape[2:4], stride, padding, size, scattered)
    inner, biased = scale if alone else None, bias if alone else None
    launched(
        KERNELS, "multiply", (-(-rows // tall) * -(-produced // across) * groups, 1, 1), x, w,
        target, w if inner is None else inner, w if biased is None else biased.contiguous(), rows,
        produced, summed, height, width, *size, *(x.stride(axis) for axis in (0, 3, 1, 2)),
        *w.stride()[:4], *target.stride(), 0 if inner is None else inner.stride(0), *stride,
        *padding, *dilation, w.shape[3], bound(taps * blocks), max(short // deep, 1),
        WIDE=Layout.of(x).is_wide or Layout.of(target).is_wide, MOVES=moves,
        EVEN=summed % deep == 0, FLUSH=terms > short, LONG=long, SCALED=inner is not None,
        BIASED=biased is not None,
        ROWS=tall, ACROSS=across, DEEP=deep, BAND=8, num_warps=warps, num_stages=3, **OPTIONS,
    )  # fmt: skip
    if not alone:
        parts = kept.view(1, cut_x.digits, -1, cut_w.digits, produced // cut_w.digits)
        combine(parts, cut_x.digits, cut_w.digits, y.permute(0, 3, 4, 1, 2), scale, bias, True)
    return y


def _product(x: Tensor, w: Tensor, size: list[int], layout: str, *others: object) -> Tensor:
    *_, reach, scale, _ = others
    return _result(x, w, size, layout, reach, scale)  # type: ignore[arg-type]


convolve_digits = register(
    "qtrain::convolve_digits(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_x, Tensor? zero_w, int[] reach,"
    " Tensor? scale, Tensor? bias) -> Tensor",
    _multiply,
    _product,
    "CPU",
    "CUDA",
)
