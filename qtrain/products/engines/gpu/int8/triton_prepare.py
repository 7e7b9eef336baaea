"""The Triton kernel of what a zero point needs before a convolution: a copy, sums of weights."""

from __future__ import annotations

import triton
import triton.language as tl

#: no number compiles a kernel anew: what matters of them are UNIT and LAST
_NUMBERS = [
    "copies", "produced", "summed", "w_g", "w_p", "w_r", "w_s", "taps_w", "blocks", "steps",
    "pixels", "channels", "height", "width", "out_height", "out_width", "x_n", "x_g", "x_c", "x_h",
    "x_w", "padding_h", "padding_w",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def prepare(
    x,
    w,
    y,
    sums,
    zero_point,
    copies,
    produced,
    summed,
    w_g,
    w_p,
    w_r,
    w_s,
    taps_w,
    blocks,
    steps,
    pixels,
    channels,
    height,
    width,
    out_height,
    out_width,
    x_n,
    x_g,
    x_c,
    x_h,
    x_w,
    padding_h,
    padding_w,
    WIDE: tl.constexpr,
    UNIT: tl.constexpr,
    LAST: tl.constexpr,
    UNSIGNED: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """x (N, G, C, H, W) with its padding, of the zero point: y int8, (N, H, W, G, C) in C order;
    and the sums (G * P), int32, of w (G, P, C, R, S) over c and taps.

    UNSIGNED: x uint8, and y 128 less.  pixels: N * H * W of y.  WIDE: places pass int32.
    UNIT: channels, summed and the strides but x_c are given in sixteens, or in ones; LAST: that
    x_c is 1.
    Program: pixels and channels, the first `copies`; then a sum, in steps of DEEP, see convolve.
    """
    summed, channels = summed * UNIT, channels * UNIT
    x_n, x_g, x_h, x_w = x_n * UNIT, x_g * UNIT, x_h * UNIT, x_w * UNIT
    w_g, w_p, w_r, w_s = w_g * UNIT, w_p * UNIT, w_r * UNIT, w_s * UNIT
    if LAST:
        x_c = 1
    program = tl.program_id(0)
    if program < copies:
        _copied(
            program, x, y, tl.load(zero_point), pixels, channels, height, width, out_height,
            out_width, summed, x_n, x_g, x_c, x_h, x_w, padding_h, padding_w, WIDE, UNSIGNED,
            PIXELS, CHANNELS,
        )  # fmt: skip
    else:
        _summed(
            program - copies, w, sums, produced, summed, w_g, w_p, w_r, w_s, taps_w, blocks, steps,
            DEEP,
        )  # fmt: skip


@triton.jit
def _summed(
    channel, w, sums, produced, summed, w_g, w_p, w_r, w_s, taps_w, blocks, steps,
    DEEP: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((DEEP,), dtype=tl.int32)
    own = w + (channel // produced) * w_g + (channel % produced) * w_p
    for step in range(steps):
        tap = step // blocks
        deep = (step % blocks) * DEEP + tl.arange(0, DEEP)
        at = deep + (tap // taps_w) * w_r + (tap % taps_w) * w_s
        total += tl.load(own + at, mask=deep < summed, other=0).to(tl.int32)
    tl.store(sums + channel, tl.sum(total, 0))


@triton.jit
def _copied(
    program, x, y, zero, pixels, channels, height, width, out_height, out_width, summed, x_n, x_g,
    x_c, x_h, x_w, padding_h, padding_w, WIDE: tl.constexpr, UNSIGNED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(channels, CHANNELS)
    m = program // across * PIXELS + tl.arange(0, PIXELS)
    c = program % across * CHANNELS + tl.arange(0, CHANNELS)
    if WIDE:
        m, c = m.to(tl.int64), c.to(tl.int64)
    w = m % out_width - padding_w
    h = (m // out_width) % out_height - padding_h
    n = m // (out_width * out_height)
    there = (h >= 0) & (w >= 0) & (h < height) & (w < width) & (m < pixels)
    inside = (c < channels)[None, :]
    at = n * x_n + h * x_h + w * x_w
    channel = (c // summed) * x_g + (c % summed) * x_c
    v = tl.load(x + at[:, None] + channel[None, :], mask=there[:, None] & inside, other=0)
    if UNSIGNED:
        v = (v ^ 128).to(tl.int8, bitcast=True)
        zero = zero - 128
    v = tl.where(there[:, None], v, zero.to(tl.int8))
    tl.store(y + m[:, None] * channels + c[None, :], v, mask=(m < pixels)[:, None] & inside)
