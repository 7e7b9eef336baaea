"""The Triton kernel of an int8 convolution, gather or scatter, with its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_digits import scaled

_SIZES = [
    "rows", "produced", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "taps_w", "blocks", "steps", "scale_p",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
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
    steps,
    WIDE: tl.constexpr,
    SCATTER: tl.constexpr,
    AFFINE: tl.constexpr,
    FILLED: tl.constexpr,
    UNSIGNED: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, g, p, i] = the sum over c and taps k of x[n, g, c, .] w[g, p, c, k]: see geometry.

    x (N, G, C, H, W), w (G, P, C, R, S): int8; their strides, that of c is 1.
    y (N, G, P, H, W): int32 sums, or when SCALED fp32: fl32(fl32(sum) * scale), scale (G * P)
    fp32 or fp64, then + bias (G * P), fp32.
    zero_point (int32), when AFFINE: is taken from x, FILLED: which has it where no element is met;
    when UNSIGNED it is of uint8 elements, which x holds 128 less.  sums (G * P): of w over c, taps.
    rows: N * H * W of y; blocks: of DEEP channels; steps: taps times blocks.
    WIDE: places in x or y pass int32.
    Program: a tile of a group, ROWS x ACROSS; BAND of them share what they read.
    """
    columns = tl.cdiv(produced, ACROSS)
    tiles = tl.cdiv(rows, ROWS) * columns
    program, group = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    band = program // (BAND * columns)
    first = band * BAND
    size = min(tl.cdiv(rows, ROWS) - first, BAND)
    within = program % (BAND * columns)
    m = (first + within % size) * ROWS + tl.arange(0, ROWS)
    p = within // size * ACROSS + tl.arange(0, ACROSS)
    c = tl.arange(0, DEEP)
    if WIDE:
        m, group = m.to(tl.int64), group.to(tl.int64)
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
    for step in range(steps):
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
        if FILLED:
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
        found = scaled(total.to(tl.float32), own[None, :], own)
        if BIASED:
            found = found + tl.load(bias + channel, mask=p < produced, other=0.0)[None, :]
        tl.store(y + place, found, mask=inside)
    else:
        tl.store(y + place, total, mask=inside)


@triton.jit
def prepare(
    x,
    y,
    zero_point,
    pixels,
    channels,
    height,
    width,
    out_height,
    out_width,
    x_n,
    x_c,
    x_h,
    x_w,
    padding_h,
    padding_w,
    WIDE: tl.constexpr,
    UNSIGNED: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x (N, C, H, W) with its padding, of the zero point: y int8, (N, H, W, C) in C order.

    UNSIGNED: x uint8, and y 128 less.  pixels: N * H * W of y.  WIDE: places pass int32.
    Program: pixels and channels.
    """
    across = tl.cdiv(channels, CHANNELS)
    m = tl.program_id(0) // across * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)
    if WIDE:
        m = m.to(tl.int64)
    w = m % out_width - padding_w
    h = (m // out_width) % out_height - padding_h
    n = m // (out_width * out_height)
    there = (h >= 0) & (w >= 0) & (h < height) & (w < width) & (m < pixels)
    inside = (c < channels)[None, :]
    at = n * x_n + h * x_h + w * x_w
    v = tl.load(x + at[:, None] + (c * x_c)[None, :], mask=there[:, None] & inside, other=0)
    zero = tl.load(zero_point)
    if UNSIGNED:
        v = (v ^ 128).to(tl.int8, bitcast=True)
        zero = zero - 128
    v = tl.where(there[:, None], v, zero.to(tl.int8))
    tl.store(y + m[:, None] * channels + c[None, :], v, mask=(m < pixels)[:, None] & inside)


@triton.jit
def times(a, b, result, size, A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr):
    """scales.times: fl24(a * b) in fp64; A, B: whether that factor is one number."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    left = tl.load(a + i * (1 - A), mask=inside, other=0.0).to(tl.float64)
    right = tl.load(b + i * (1 - B), mask=inside, other=0.0).to(tl.float64)
    bits = (left * right).to(tl.int64, bitcast=True)
    bits = (bits + 0xFFFFFFF + ((bits >> 29) & 1)) & -0x20000000
    tl.store(result + i, bits.to(tl.float64, bitcast=True), mask=inside)
