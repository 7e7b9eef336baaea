"""The Triton kernel of an int8 convolution, gather or scatter, with its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolve(
    x,
    w,
    y,
    scale,
    bias,
    zero_point,
    sums,
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
    STEPS: tl.constexpr,
    SCATTER: tl.constexpr,
    UNSIGNED: tl.constexpr,
    AFFINE: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, g, p, i] = the sum over c and taps k of x[n, g, c, .] w[g, p, c, k]: see geometry.

    x (N, G, C, H, W), w (G, P, C, R, S): int8, or bytes of uint8 x when UNSIGNED; their strides,
    that of c is 1.  y (N, G, P, H, W): int32 sums, or when SCALED fp32: fl32(fl32(sum) * scale),
    scale fp32 or fp64, one or (G * P), then + bias (G * P), fp32.
    zero_point (int32), when AFFINE, as it is when UNSIGNED: is taken from x; sums (G * P): of w over c and taps.
    rows: N * H * W of y; blocks: of DEEP channels; STEPS: taps times blocks.
    Program: (tile, group); tiles of ROWS x ACROSS, BAND of them share what they read.
    """
    program, group = tl.program_id(0), tl.program_id(1)
    columns = tl.cdiv(produced, ACROSS)
    band = program // (BAND * columns)
    first = band * BAND
    size = min(tl.cdiv(rows, ROWS) - first, BAND)
    within = program % (BAND * columns)
    m = (first + within % size) * ROWS + tl.arange(0, ROWS)
    p = within // size * ACROSS + tl.arange(0, ACROSS)
    c = tl.arange(0, DEEP)
    ow = m % out_width
    oh = (m // out_width) % out_height
    n = m // (out_width * out_height)
    zero = 0
    if AFFINE:
        zero = tl.load(zero_point)
        if UNSIGNED:
            zero = zero - 128
    base = n * x_n + group * x_g
    across = p * w_p + group * w_g
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int32)
    for step in range(STEPS):
        tap = step // blocks
        deep = (step % blocks) * DEEP + c
        r, s = tap // taps_w, tap % taps_w
        if SCATTER:
            th, tw = oh + padding_h - r * dilation_h, ow + padding_w - s * dilation_w
            h, v = th // stride_h, tw // stride_w
            there = (th >= 0) & (tw >= 0) & (th % stride_h == 0) & (tw % stride_w == 0)
        else:
            h = oh * stride_h - padding_h + r * dilation_h
            v = ow * stride_w - padding_w + s * dilation_w
            there = (h >= 0) & (v >= 0)
        there = there & (h < height) & (v < width) & (m < rows)
        at = base + h * x_h + v * x_w
        a = tl.load(
            x + at[:, None] + deep[None, :],
            mask=there[:, None] & (deep < summed)[None, :],
            other=0,
        )
        if UNSIGNED:
            a = (a ^ 128).to(tl.int8, bitcast=True)
        if AFFINE:
            a = tl.where(there[:, None], a, zero.to(tl.int8))
        b = tl.load(
            w + (across + r * w_r + s * w_s)[None, :] + deep[:, None],
            mask=(p < produced)[None, :] & (deep < summed)[:, None],
            other=0,
        )
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    inside = (m < rows)[:, None] & (p < produced)[None, :]
    channel = group * produced + p
    if AFFINE:
        total = total - zero * tl.load(sums + channel, mask=p < produced, other=0)[None, :]
    place = (n * y_n + oh * y_h + ow * y_w + group * y_g)[:, None] + (p * y_p)[None, :]
    if SCALED:
        own = tl.load(scale + channel * scale_p, mask=p < produced, other=0.0)
        found = total.to(tl.float32)
        if own.dtype == tl.float64:
            found = (found.to(tl.float64) * own[None, :]).to(tl.float32)
        else:
            found = found * own[None, :]
        if BIASED:
            found = found + tl.load(bias + channel, mask=p < produced, other=0.0)[None, :]
        tl.store(y + place, found, mask=inside)
    else:
        tl.store(y + place, total, mask=inside)
