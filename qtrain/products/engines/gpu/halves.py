"""Exact products of integers of up to 17 bits on fp16 tensor cores, as operations of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound, there
from quantizers.kernels.serving import imported

KERNELS = "qtrain.products.engines.gpu.triton_halves"
#: the largest magnitude of an element
REACH = 2**16
#: programs that keep a GPU busy
_PROGRAMS = 512
#: elements of a program that has no tile
_BLOCK = 1024
#: how a result (N, G, P, H, W) lies in memory: its axes, the outermost first
_ORDERS: dict[str, tuple[int, ...]] = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 3, 4, 1, 2),
    "matrices": (0, 1, 3, 4, 2),
}


class _Cut(NamedTuple):
    """digits, largest: how many digits to the base 256 an operand has, and their magnitude."""

    digits: int
    largest: int

    @classmethod
    def of(cls, reach: int) -> _Cut:
        return cls(1, reach) if reach <= 256 else cls(2, max((reach + 128) >> 8, 128))


def _length(one: _Cut, other: _Cut, limit: int) -> int:
    """Products of two digits that add up to less than the limit."""
    return (limit - 1) // max(one.largest * other.largest, 1)


def _dtype(reach: int) -> torch.dtype:
    """Which keeps sums that reach so far."""
    return torch.int32 if reach < 2**31 else torch.float64


def _is_wide(*tensors: Tensor) -> bool:
    """Whether a place in one of them, a tile beyond its end included, passes int32."""
    spans = (
        sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) for x in tensors
    )
    return max(spans) >= 2**30


def _digits(x: Tensor, zero_point: Tensor | None, count: int, outer: int) -> Tensor:
    """x, of 5 axes, less its zero point, as fp16 in C order, its digits along a new axis, which
    comes before the axis `outer`, 0 or 1."""
    shape = [*x.shape[:outer], count, *x.shape[outer:]]
    y = torch.empty(shape, dtype=torch.float16, device=x.device)
    rows, channels = math.prod(x.shape[:4]), x.shape[4]
    if y.numel() == 0:
        return y
    across = min(1 << (channels - 1).bit_length(), 128)
    down = 4096 // across
    with there(x):
        imported(KERNELS).digits[(-(-rows // down) * -(-channels // across),)](
            x,
            y,
            x if zero_point is None else zero_point,
            rows,
            channels,
            *x.shape[1:4],
            *x.stride(),
            math.prod(x.shape[1:]) * (count if outer else 1),
            y.stride(outer),
            WIDE=_is_wide(x, y),
            AFFINE=zero_point is not None,
            TWO=count == 2,
            PIXELS=down,
            CHANNELS=across,
            num_warps=8,
        )
    return y


def _combine(
    parts: Tensor,
    left: int,
    right: int,
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    per_channel: bool,
) -> None:
    """parts (splits, left digits, ..., right digits, channels) -> y, of 5 axes."""
    size = y.numel()
    with there(y):
        imported(KERNELS).combine[(-(-size // _BLOCK),)](
            parts,
            y,
            parts if scale is None else scale,
            parts if bias is None else bias.contiguous(),
            size,
            y.shape[4],
            bound(parts.shape[0]),
            parts.stride(0),
            parts.stride(1),
            *y.shape[1:4],
            *y.stride(),
            scale.stride(0) if scale is not None and per_channel else 0,
            WIDE=_is_wide(parts, y),
            LEFT=left,
            RIGHT=right,
            SCALED=scale is not None,
            BIASED=bias is not None,
            BLOCK=_BLOCK,
            **OPTIONS,
        )


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
    dtype = torch.float32 if scale is not None else _dtype(reach * math.prod(w.shape[2:]))
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
    cut_x, cut_w = _Cut.of(reach[0]), _Cut.of(reach[1])
    terms, alone = math.prod(w.shape[2:]), cut_x.digits == cut_w.digits == 1
    x = _digits(x.permute(0, 3, 4, 1, 2), zero_x, cut_x.digits, 0).flatten(0, 1)
    w = _digits(w.permute(0, 1, 3, 4, 2), zero_w, cut_w.digits, 1).flatten(1, 2)
    _, height, width, groups, summed = x.shape
    (batch, *_), produced, taps = x.shape, w.shape[1], w.shape[2] * w.shape[3]
    long = terms > _length(cut_x, cut_w, 2**31)
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
    short, blocks = _length(cut_x, cut_w, 2**24), -(-summed // deep)
    inner, biased = scale if alone else None, bias if alone else None
    with there(x):
        imported(KERNELS).multiply[(-(-rows // tall) * -(-produced // across) * groups,)](
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
            WIDE=_is_wide(x, target),
            SCATTER=scattered,
            EVERY=0 if terms <= short else short // deep,
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
        _combine(
            parts, cut_x.digits, cut_w.digits, y.permute(0, 3, 4, 1, 2), scale, bias, True
        )  # fmt: skip
    return y


def _correlate(
    small: Tensor,
    large: Tensor,
    like: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    zero_small: Tensor | None,
    zero_large: Tensor | None,
    reach: list[int],
    scale: Tensor | None,
) -> Tensor:
    y = _gradient(small, large, like, stride, padding, dilation, transposed, None, None, reach, scale)
    if y.numel() == 0:
        return y
    cut, other = _Cut.of(reach[0]), _Cut.of(reach[1])
    out = (y.transpose(1, 2) if transposed else y).permute(0, 1, 3, 4, 2)
    groups, produced, *kernel, summed = out.shape
    small, large = small.unflatten(1, (groups, -1)), large.unflatten(1, (groups, -1))
    x = _digits(small.permute(0, 3, 4, 1, 2), zero_small, cut.digits, 0)
    z = _digits(large.permute(0, 3, 4, 1, 2), zero_large, other.digits, 0)
    pixels, taps = math.prod(x.shape[1:4]), math.prod(kernel)
    tall, across = (128 if n > 64 else 64 if n > 32 else 32 for n in (
        cut.digits * produced, other.digits * summed
    ))  # fmt: skip
    deep = 64
    tiles = taps * -(-cut.digits * produced // tall) * -(-other.digits * summed // across)
    # as many as keep the GPU busy, and as a part's sums need to stay within int32
    splits = max(min(_PROGRAMS // (tiles * groups), pixels // 512), 1)
    steps = max(min(-(-pixels // (splits * deep)), _length(cut, other, 2**31) // deep), 1)
    each = steps * deep
    splits = max(-(-pixels // each), 1)
    parts = torch.empty(
        (splits, cut.digits, groups * produced * taps, other.digits, summed),
        dtype=torch.int32,
        device=x.device,
    )
    with there(x):
        imported(KERNELS).correlate[(tiles, splits, groups)](
            x,
            z,
            parts,
            pixels,
            each,
            produced,
            summed,
            cut.digits,
            other.digits,
            groups,
            *large.shape[3:],
            *small.shape[3:],
            x.stride(0),
            z.stride(0),
            *z.stride()[1:4],
            *parts.stride()[:2],
            *stride,
            *padding,
            *dilation,
            taps,
            kernel[1],
            bound(steps),
            WIDE=_is_wide(x, z),
            EVERY=_length(cut, other, 2**24) // deep,
            ROWS=tall,
            ACROSS=across,
            DEEP=deep,
            num_warps=8 if tall * across >= 128 * 128 else 4,
            num_stages=3,
            **OPTIONS,
        )
    _combine(parts, cut.digits, other.digits, out, scale, None, False)
    return y


def _product(x: Tensor, w: Tensor, size: list[int], layout: str, *others: object) -> Tensor:
    *_, reach, scale, _ = others
    return _result(x, w, size, layout, reach[0] * reach[1], scale)  # type: ignore[index,arg-type]


def _gradient(small: Tensor, large: Tensor, like: Tensor, *others: object) -> Tensor:
    *_, reach, scale = others
    terms = small.shape[0] * math.prod(small.shape[2:])
    narrow = _dtype(reach[0] * reach[1] * terms)  # type: ignore[index]
    return torch.empty_like(like, dtype=narrow if scale is None else torch.float32)


multiply_halves = register(
    "qtrain::multiply_halves(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_x, Tensor? zero_w, int[] reach,"
    " Tensor? scale, Tensor? bias) -> Tensor",
    _multiply,
    _product,
    "CPU",
    "CUDA",
)
correlate_halves = register(
    "qtrain::correlate_halves(Tensor small, Tensor large, Tensor like, int[] stride,"
    " int[] padding, int[] dilation, bool transposed, Tensor? zero_small, Tensor? zero_large,"
    " int[] reach, Tensor? scale) -> Tensor",
    _correlate,
    _gradient,
    "CPU",
    "CUDA",
)
