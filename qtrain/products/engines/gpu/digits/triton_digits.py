"""Triton kernels that take integers apart into digits, as fp16, and put sums of digits together."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_scales import is_held, scaled


@triton.jit(
    do_not_specialize=[
        "rows", "channels", "s1", "s2", "s3", "given", "before", "x_0", "x_1", "x_2", "x_3", "x_c",
        "y_0", "y_digit",
    ]
)  # fmt: skip
def digits(
    x,
    y,
    zero_point,
    rows,
    channels,
    s1,
    s2,
    s3,
    given,
    before,
    x_0,
    x_1,
    x_2,
    x_3,
    x_c,
    y_0,
    y_digit,
    WIDE: tl.constexpr,
    AFFINE: tl.constexpr,
    TWO: tl.constexpr,
    UNIT: tl.constexpr,
    ADJACENT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x (s0, s1, given, s3, channels), integers, less their zero point, as fp16 in C order, with
    `before` zeros or more on both sides of `given`: s2 in all.

    y_0: step of y along s0; TWO: v = 256 high + low, low of -128 .. 127, high y_digit before low.
    rows: s0 * s1 * s2 * s3.  WIDE: places pass int32.  ADJACENT: x_c is 1.
    UNIT: 16 or 1, of channels and all other steps, which are told in it.
    Program: rows and channels.
    """
    channels = channels * UNIT
    columns = tl.cdiv(channels, CHANNELS)
    m = tl.program_id(0) // columns * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(0) % columns * CHANNELS + tl.arange(0, CHANNELS)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    if WIDE:
        m = m.to(tl.int64)
    own = s1 * s2 * s3
    i3, i2, i1, i0 = m % s3, m // s3 % s2 - before, m // (s2 * s3) % s1, m // own
    at = (i0 * x_0 + i1 * x_1 + i2 * x_2 + i3 * x_3) * UNIT
    there = inside & ((i2 >= 0) & (i2 < given))[:, None]
    across = c
    if not ADJACENT:
        across = c * x_c
    v = tl.load(x + at[:, None] + across[None, :], mask=there, other=0).to(tl.int32)
    if AFFINE:
        v = tl.where(there, v - tl.load(zero_point).to(tl.int32), 0)
    to = y + (i0 * y_0 * UNIT + (m % own) * channels)[:, None] + c[None, :]
    if TWO:
        high = (v + 128) >> 8
        tl.store(to, high.to(tl.float16), mask=inside)
        to += y_digit * UNIT
        v = v - (high << 8)
    tl.store(to, v.to(tl.float16), mask=inside)


@triton.jit(
    do_not_specialize=[
        "size", "channels", "splits", "steps", "x_s", "x_digit", "s1", "s2", "s3", "y_0", "y_1",
        "y_2", "y_3", "y_c", "scale_c",
    ]
)  # fmt: skip
def combine(
    x,
    y,
    scale,
    bias,
    size,
    channels,
    splits,
    steps,
    x_s,
    x_digit,
    s1,
    s2,
    s3,
    y_0,
    y_1,
    y_2,
    y_3,
    y_c,
    scale_c,
    WIDE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    UNIT: tl.constexpr,
    ADJACENT: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y (s0, s1, s2, s3, channels) = the sum over splits and digits of
    x (splits, LEFT digits, s0, s1, s2, s3, RIGHT digits, channels).

    The first of two digits counts 256.  SCALED, BIASED: as in multiply, of channels s3 * channels.
    size: of y; steps: through the splits, TOGETHER at once.  WIDE: places pass int32.
    UNIT, ADJACENT: of channels and steps, as in digits, here of y.  Program: BLOCK of y.
    """
    channels = channels * UNIT
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    if not WIDE:
        e = e.to(tl.int32)
    row, c = e // channels, e % channels
    start = tl.arange(0, TOGETHER)
    if WIDE:
        start = start.to(tl.int64)
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for step in range(steps):
        split = step * TOGETHER + start
        there = (split < splits)[:, None] & inside[None, :]
        for d in tl.static_range(LEFT):
            for f in tl.static_range(RIGHT):
                at = d * x_digit * UNIT + (row * RIGHT + f) * channels + c
                own = tl.load(x + (split * x_s * UNIT)[:, None] + at[None, :], mask=there, other=0)
                total += tl.sum(own.to(tl.int64), 0) * (256 ** (LEFT - 1 - d + RIGHT - 1 - f))
    i3 = row % s3
    to = i3 * y_3 + row // s3 % s2 * y_2 + row // (s2 * s3) % s1 * y_1
    to = (to + row // (s1 * s2 * s3) * y_0) * UNIT
    if ADJACENT:
        to += c
    else:
        to += c * y_c
    if SCALED:
        found = total.to(tl.float32)
        channel = i3 * channels + c
        own = tl.load(scale + channel * scale_c, mask=inside, other=0.0)
        found = scaled(found, own, tl.min(is_held(own), 0))
        if BIASED:
            found = found + tl.load(bias + channel, mask=inside, other=0.0)
        tl.store(y + to, found, mask=inside)
    else:
        tl.store(y + to, total.to(y.dtype.element_ty), mask=inside)
