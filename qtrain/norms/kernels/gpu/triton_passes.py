"""Triton kernels that write a norm's output or its input's gradient, element by element.

A program has a tile of ROWS elements and COLUMNS channels: see triton_tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantizers.kernels.gpu.triton_made import made_by_one

from .triton_tiles import before_relu, keep, multiple, place, places, rounded, sign


@triton.jit
def _tile(
    count,
    channels,
    width,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """This program's elements, channels, places, and which there are."""
    tiles = tl.cdiv(channels, COLUMNS)
    e = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = (e < multiple(count, ALIGNED))[:, None] & (c < channels)[None, :]
    return e, c, places(e, c, channels, width, PLANES, ALIGNED), inside


@triton.jit
def _of(per_channel, c, channels):
    return tl.load(per_channel + c, mask=c < channels, other=0.0)[None, :]


@triton.jit(do_not_specialize=["count"])
def normalize(
    x,
    y,
    mean,
    scale,
    shift,
    step,
    zero_point,
    count,
    channels,
    width,
    low,
    high,
    RELU: tl.constexpr,
    ROUNDING: tl.constexpr,
    CODES: tl.constexpr,
    AFFINE: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = (x - mean) * scale + shift, rounded, then ReLU; count: elements of a channel.

    CODES: of y the nearest integers to y / step, when AFFINE + zero_point, within low..high.
    """
    _, c, at, inside = _tile(count, channels, width, PLANES, ALIGNED, ROWS, COLUMNS)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - _of(mean, c, channels)
    v = rounded(v * _of(scale, c, channels) + _of(shift, c, channels), ROUNDING)
    if RELU:
        v = tl.where(v < 0.0, 0.0, v)
    if CODES:
        zero = 0.0
        if AFFINE:
            zero = tl.load(zero_point).to(tl.float32)
        v = made_by_one(
            v, tl.load(step), zero, 0, step, low, high, 0.0, 0.0, 0.0, True, True, True, False, 0,
            "nearest_even", False,
        )  # fmt: skip
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def backward(
    x,
    grad,
    result,
    mean,
    scale,
    shift,
    factor,
    offset,
    where,
    values,
    count,
    channels,
    width,
    RELU: tl.constexpr,
    ROUNDING: tl.constexpr,
    SLOPE: tl.constexpr,
    CARRIERS: tl.constexpr,
    TARGET: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """g * scale + offset, + factor * centered or sign(centered) (SLOPE "centered", "sign"), + the
    values (C, CARRIERS) at elements `where`, in their order; rounded as TARGET.

    centered: x - mean; g: grad, where the ReLU of the output, rounded, was on.
    """
    e, c, at, inside = _tile(count, channels, width, PLANES, ALIGNED, ROWS, COLUMNS)
    w = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    s = _of(scale, c, channels)
    if RELU or SLOPE != "":
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - _of(mean, c, channels)
    if RELU:
        w = before_relu(w, v, s, _of(shift, c, channels), ROUNDING)
    w = w * s + _of(offset, c, channels)
    if SLOPE == "centered":
        w = w + v * _of(factor, c, channels)
    if SLOPE == "sign":
        w = w + sign(v) * _of(factor, c, channels)
    for j in tl.static_range(CARRIERS):
        own = tl.load(where + c * CARRIERS + j, mask=c < channels, other=-1).to(tl.int32)
        value = tl.load(values + c * CARRIERS + j, mask=c < channels, other=0.0)
        w = tl.where(e[:, None] == own[None, :], w + value[None, :], w)
    keep(result, at, w, inside, TARGET)


@triton.jit(do_not_specialize=["count", "carriers"])
def add_at(
    grad,
    where,
    values,
    count,
    carriers,
    channels,
    width,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad with values (C, J) added at elements (C, J) of its channels, in their order; fp32.

    Of equal places the first adds up all: no two write the same.  count: C * J.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    c = i // carriers
    e = tl.load(where + i, mask=inside, other=0).to(tl.int32)
    at = place(e, c, channels, width, PLANES)
    total = tl.load(grad + at, mask=inside, other=0.0)
    first = inside
    for j in range(carriers):
        other = c * carriers + j
        same = inside & (tl.load(where + other, mask=inside, other=-1).to(tl.int32) == e)
        first = first & ((other >= i) | (same == 0))
        total = tl.where(same, total + tl.load(values + other, mask=inside, other=0.0), total)
    tl.store(grad + at, total, mask=first)


@triton.jit
def residual(
    x, y, result, off, count, MASKED: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr
):
    """relu(x + y), rounded as SOURCE, and a byte each where it was off; MASKED: x, a gradient, but
    0 where the ReLU was off."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    if MASKED:
        below = tl.load(off + i, mask=inside, other=0) != 0
    else:
        v = rounded(v + tl.load(y + i, mask=inside, other=0.0).to(tl.float32), SOURCE)
        below = v <= 0.0
        tl.store(off + i, below.to(tl.uint8), mask=inside)
    tl.store(result + i, tl.where(below, 0.0, v).to(result.dtype.element_ty), mask=inside)
