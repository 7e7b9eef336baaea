"""The Triton kernel of what a zero point needs before a convolution: a copy, sums of weights."""

from __future__ import annotations

import triton
import triton.language as tl

#: no number compiles a kernel anew: what matters of them are UNIT, X_UNIT and flags
_NUMBERS = [
    "copies", "rows", "produced", "summed", "w_g", "w_p", "w_r", "w_s", "taps_w", "blocks",
    "steps", "pixels", "groups", "given", "own", "height", "width", "out_height", "out_width",
    "x_n", "x_g", "x_c", "x_h", "x_w", "padding_h", "padding_w",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def prepare(
    x,
    w,
    y,
    sums,
    zero_point,
    copies,
    rows,
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
    groups,
    given,
    own,
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
    X_UNIT: tl.constexpr,
    LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    PADDED: tl.constexpr,
    UNSIGNED: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    DEEP: tl.constexpr,
):
    """x (N, G, C, H, W) with its padding, of the zero point: y int8, (N, H, W, G, C') in C order,
    C' >= C; and the sums (G * P), int32, of w (G, P, C', R, S) over c and taps.

    UNSIGNED: x uint8, and y 128 less.  pixels: N * H * W of y; given, own: C, C', PADDED: which is
    more, ALIGNED: a multiple of 16; rows: G * P.  WIDE: places pass int32.
    UNIT: summed (C' of w) and the strides of w are given in sixteens, or in ones; X_UNIT: the
    strides of x but x_c, LAST: which is 1.
    Program: pixels and channels, the first `copies`; then TOGETHER sums, in steps of DEEP.
    """
    summed = summed * UNIT
    w_g, w_p, w_r, w_s = w_g * UNIT, w_p * UNIT, w_r * UNIT, w_s * UNIT
    x_n, x_g, x_h, x_w = x_n * X_UNIT, x_g * X_UNIT, x_h * X_UNIT, x_w * X_UNIT
    if LAST:
        x_c = 1
    if ALIGNED:
        own = own // 16 * 16
    program = tl.program_id(0)
    if program < copies:
        _copied(
            program, x, y, tl.load(zero_point), pixels, groups, given, own, height, width,
            out_height, out_width, x_n, x_g, x_c, x_h, x_w, padding_h, padding_w, WIDE, PADDED,
            UNSIGNED, PIXELS, CHANNELS,
        )  # fmt: skip
    else:
        _summed(
            program - copies, w, sums, rows, produced, summed, w_g, w_p, w_r, w_s, taps_w, blocks,
            steps, TOGETHER, DEEP,
        )  # fmt: skip


@triton.jit
def _summed(
    program, w, sums, rows, produced, summed, w_g, w_p, w_r, w_s, taps_w, blocks, steps,
    TOGETHER: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    row = program * TOGETHER + tl.arange(0, TOGETHER)
    total = tl.zeros((TOGETHER, DEEP), dtype=tl.int32)
    first = w + ((row // produced) * w_g + (row % produced) * w_p)[:, None]
    for step in range(steps):
        tap = step // blocks
        deep = ((step % blocks) * DEEP + tl.arange(0, DEEP))[None, :]
        at = deep + (tap // taps_w) * w_r + (tap % taps_w) * w_s
        inside = (row < rows)[:, None] & (deep < summed)
        total += tl.load(first + at, mask=inside, other=0).to(tl.int32)
    tl.store(sums + row, tl.sum(total, 1), mask=row < rows)


@triton.jit
def _copied(
    program, x, y, zero, pixels, groups, given, own, height, width, out_height, out_width, x_n, x_g,
    x_c, x_h, x_w, padding_h, padding_w, WIDE: tl.constexpr, PADDED: tl.constexpr,
    UNSIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = groups * own
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
    channel = (c // own) * x_g + (c % own) * x_c
    taken = inside & (c % own < given)[None, :] if PADDED else inside
    v = tl.load(x + at[:, None] + channel[None, :], mask=there[:, None] & taken, other=0)
    if UNSIGNED:
        v = (v ^ 128).to(tl.int8, bitcast=True)
        zero = zero - 128
    v = tl.where(there[:, None], v, zero.to(tl.int8))
    tl.store(y + m[:, None] * channels + c[None, :], v, mask=(m < pixels)[:, None] & inside)
