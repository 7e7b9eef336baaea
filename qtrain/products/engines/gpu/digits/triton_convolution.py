"""Triton kernel of exact convolutions of integers, gather or scatter, on fp16 tensor cores.

fp16 holds the integers up to 2^11, fp32 their sums below 2^24: operands of more bits are cut into
digits to the base 256, and sums are taken over to integers before they reach that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_places import first_met, first_place, moved, place_met, read, tile
from ..triton_scales import is_held, scaled

_SHAPE = [
    "rows", "produced", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "taps_w", "steps", "every", "scale_p",
]  # fmt: skip


@triton.jit(do_not_specialize=_SHAPE)
def multiply(
    x,
    w,
    y,
    scale,
    bias,
    rows,
    produced,
    summed,
    height,
    width,
    out_height,
    out_width,
    x_n,
    x_g,
    x_h,
    x_w,
    w_g,
    w_p,
    w_r,
    w_s,
    y_n,
    y_g,
    y_p,
    y_h,
    y_w,
    scale_p,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    taps_w,
    steps,
    every,
    WIDE: tl.constexpr,
    MOVES: tl.constexpr,
    EVEN: tl.constexpr,
    FLUSH: tl.constexpr,
    LONG: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, g, p, i] = the sum over c and taps k of x[n, g, c, .] w[g, p, c, k]: see geometry.

    x (N, G, C, H, W), w (G, P, C, R, S): integers as fp16; their strides, that of c is 1.
    y (N, G, P, H, W): sums, or when SCALED fp32: fl32(fl32(sum) * scale), scale (G * P) fp32 or
    fp64, then + bias (G * P), fp32.
    FLUSH: fp32 sums are taken over to int32, LONG: to int64, after `every` steps.
    rows: N * H * W of y; steps: of DEEP channels of a tap, EVEN: which are whole; MOVES: see
    triton_places.  WIDE: places in x or y pass int32.
    Program: a tile of a group, ROWS x ACROSS; BAND of them share what they read.
    """
    group, m, p = tile(rows, produced, WIDE, ROWS, ACROSS, BAND)
    c = tl.arange(0, DEEP)
    if WIDE:
        x_h, x_w = x_h.to(tl.int64), x_w.to(tl.int64)
    n, oh, ow, top, left = first_met(
        m, rows, out_height, out_width, stride_h, stride_w, padding_h, padding_w, MOVES
    )
    held = w + (tl.minimum(p, produced - 1) * w_p + group * w_g)[None, :] + c[:, None]
    first = first_place(n * x_n + group * x_g, top, left, x_h, x_w, MOVES)
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.int32)
    part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    k, r, s = 0, 0, 0
    for step in range(steps):
        at, there = place_met(
            first, top, left, r * dilation_h, s * dilation_w, height, width, stride_h, stride_w,
            x_h, x_w, MOVES,
        )  # fmt: skip
        inside = c < summed - k
        a = read(x + (at + k)[:, None] + c[None, :], there[:, None], inside[None, :], MOVES, EVEN)
        within = inside[:, None]
        b = read(held + (r * w_r + s * w_s + k), within, within, "still", EVEN)
        part = tl.dot(a, b, part)
        k, r, s = moved(k, r, s, DEEP, summed, taps_w, MOVES)
        if FLUSH:
            if step % every == every - 1:
                total += part.to(total.dtype)
                part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    inside = (m < rows)[:, None] & (p < produced)[None, :]
    place = (n * y_n + oh * y_h + ow * y_w + group * y_g)[:, None] + (p * y_p)[None, :]
    if FLUSH:
        total += part.to(total.dtype)
    if SCALED:
        found = part
        if FLUSH:
            found = total.to(tl.float32)
        channel = group * produced + p
        own = tl.load(scale + channel * scale_p, mask=p < produced, other=0.0)
        found = scaled(found, own[None, :], tl.min(is_held(own), 0))
        if BIASED:
            found = found + tl.load(bias + channel, mask=p < produced, other=0.0)[None, :]
        tl.store(y + place, found, mask=inside)
    else:
        if FLUSH:
            tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
        else:
            tl.store(y + place, part.to(y.dtype.element_ty), mask=inside)
