"""Triton kernel of exact convolutions of integers, gather or scatter, on fp16 tensor cores.

fp16 holds the integers up to 2^11, fp32 their sums below 2^24: operands of more bits are cut into
digits to the base 256, and sums are taken over to integers before they reach that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_places import met, tile
from ..triton_scales import is_held, scaled

_SHAPE = [
    "rows", "produced", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "taps_w", "blocks", "steps", "every",
    "scale_p",
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
    blocks,
    steps,
    every,
    WIDE: tl.constexpr,
    SCATTER: tl.constexpr,
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
    rows: N * H * W of y; blocks: of DEEP channels; steps: taps times blocks.
    WIDE: places in x or y pass int32.
    Program: a tile of a group, ROWS x ACROSS; BAND of them share what they read.
    """
    group, m, p = tile(rows, produced, WIDE, ROWS, ACROSS, BAND)
    c = tl.arange(0, DEEP)
    ow = m % out_width
    oh = (m // out_width) % out_height
    n = m // (out_width * out_height)
    base = n * x_n + group * x_g
    across = p * w_p + group * w_g
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.int32)
    part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    for step in range(steps):
        tap = step // blocks
        deep = (step % blocks) * DEEP + c
        r, s = tap // taps_w, tap % taps_w
        h, v, there = met(
            oh, ow, r, s, height, width, stride_h, stride_w, padding_h, padding_w, dilation_h,
            dilation_w, SCATTER,
        )  # fmt: skip
        there = there & (m < rows)
        at = base + h * x_h + v * x_w
        a = tl.load(
            x + at[:, None] + deep[None, :],
            mask=there[:, None] & (deep < summed)[None, :],
            other=0.0,
        )
        b = tl.load(
            w + (across + r * w_r + s * w_s)[None, :] + deep[:, None],
            mask=(p < produced)[None, :] & (deep < summed)[:, None],
            other=0.0,
        )
        part = tl.dot(a, b, part)
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
