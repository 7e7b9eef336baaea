"""Exact convolutions of integers of up to 17 bits on fp16 tensor cores: an operation of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound
from quantizers.kernels.gpu.launcher import launched

from .digits import Cut, combine, digits, dtype_of, folded, is_folded, is_wide, length

KERNELS = "qtrain.products.engines.gpu.digits.triton_convolution"
#: how a result (N, G, P, H, W) lies in memory: its axes, the outermost first
_ORDERS: dict[str, tuple[int, ...]] = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 3, 4, 1, 2),
    "matrices": (0, 1, 3, 4, 2),
}


def _tiles(rows: int, produced: int, summed: int) -> tuple[int, int, int, int]:
    """Rows, columns and depth of a tile, and its warps."""
    across = 128 if produced >= 128 and rows >= 8192 else 64 if produced > 32 else 32
    tall = 128 if rows >= 4096 else 64
    return tall, across, 64 if summed > 32 else 32, 8 if tall * across >= 128 * 128 else 4


def _result(
    x: Tensor, w: Tensor, size: Sequence[int], layout: str, reach: int, scale: Tensor | None
) -> Tensor:
    shape = [x.shape[0], w.shape[0], w.shape[1], *size]
    order = _ORDERS[layout]
    dtype = torch.float32 if scale is not None else dtype_of(reach * math.prod(w.shape[2:]))
    y = torch.empty([shape[axis] for axis in order], dtype=dtype, device=x.device)
    return y.permute([order.index(axis) for axis in range(5)])


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
    y = _result(x, w, size, layout, reach[0] * reach[1], scale)
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
    tall, across, deep, warps = _tiles(rows, produced, summed)
    short, blocks = length(cut_x, cut_w, 2**24), -(-summed // deep)
    inner, biased = scale if alone else None, bias if alone else None
    launched(
        KERNELS,
        "multiply",
        (-(-rows // tall) * -(-produced // across) * groups, 1, 1),
        x,
        w,
        target,
        w if inner is None else inner,
        w if biased is None else biased.contiguous(),
        rows,
        produced,
        summed,
        height,
        width,
        *size,
        *(x.stride(axis) for axis in (0, 3, 1, 2)),
        *w.stride()[:4],
        *target.stride(),
        0 if inner is None else inner.stride(0),
        *stride,
        *padding,
        *dilation,
        w.shape[3],
        blocks,
        bound(taps * blocks),
        max(short // deep, 1),
        WIDE=is_wide(x, target),
        SCATTER=scattered,
        FLUSH=terms > short,
        LONG=long,
        SCALED=inner is not None,
        BIASED=biased is not None,
        ROWS=tall,
        ACROSS=across,
        DEEP=deep,
        BAND=8,
        num_warps=warps,
        num_stages=3,
        **OPTIONS,
    )
    if not alone:
        parts = kept.view(1, cut_x.digits, -1, cut_w.digits, produced // cut_w.digits)
        combine(
            parts, cut_x.digits, cut_w.digits, y.permute(0, 3, 4, 1, 2), scale, bias, True
        )  # fmt: skip
    return y


def _product(x: Tensor, w: Tensor, size: list[int], layout: str, *others: object) -> Tensor:
    *_, reach, scale, _ = others
    return _result(x, w, size, layout, reach[0] * reach[1], scale)  # type: ignore[index,arg-type]


convolve_digits = register(
    "qtrain::convolve_digits(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_x, Tensor? zero_w, int[] reach,"
    " Tensor? scale, Tensor? bias) -> Tensor",
    _multiply,
    _product,
    "CPU",
    "CUDA",
)
