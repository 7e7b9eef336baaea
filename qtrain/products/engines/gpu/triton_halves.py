"""Triton kernels of exact integer products on fp16 tensor cores.

fp16 holds the integers up to 2^11, fp32 their sums below 2^24: operands of more bits are cut into
digits to the base 256, and sums are taken over to integers before they reach that.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SHAPE = [
    "rows", "produced", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "taps_w", "blocks", "steps", "scale_p",
]  # fmt: skip


@triton.jit(do_not_specialize=["rows", "s1", "s2", "s3"])
def digits(
    x,
    y,
    zero_point,
    rows,
    channels,
    s1,
    s2,
    s3,
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
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x (s0, s1, s2, s3, channels), integers, less their zero point, as fp16 in C order.

    y_0: step of y along s0; TWO: v = 256 high + low, low of -128 .. 127, high y_digit before low.
    rows: s0 * s1 * s2 * s3.  WIDE: places pass int32.  Program: rows and channels.
    """
    across = tl.cdiv(channels, CHANNELS)
    m = tl.program_id(0) // across * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    if WIDE:
        m = m.to(tl.int64)
    own = s1 * s2 * s3
    i3, i2, i1, i0 = m % s3, m // s3 % s2, m // (s2 * s3) % s1, m // own
    at = i0 * x_0 + i1 * x_1 + i2 * x_2 + i3 * x_3
    v = tl.load(x + at[:, None] + (c * x_c)[None, :], mask=inside, other=0).to(tl.int32)
    if AFFINE:
        v = v - tl.load(zero_point).to(tl.int32)
    to = y + (i0 * y_0 + (m % own) * channels)[:, None] + c[None, :]
    if TWO:
        high = (v + 128) >> 8
        tl.store(to, high.to(tl.float16), mask=inside)
        to += y_digit
        v = v - (high << 8)
    tl.store(to, v.to(tl.float16), mask=inside)


@triton.jit
def _times(x, scale, scales):
    """fl32(x * scale), fp32 or fp64; scales: all of the program's, in one axis.

    Where fp32 holds them, as it does nearly always, that is fp32's product: units for fp64 are few.
    """
    narrow = scale.to(tl.float32)
    if scale.dtype == tl.float64:
        held = tl.min((scales.to(tl.float32).to(tl.float64) == scales).to(tl.int32), 0)
        if held == 1:
            x = x * narrow
        else:
            x = (x.to(tl.float64) * scale).to(tl.float32)
    else:
        x = x * narrow
    return x


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
    WIDE: tl.constexpr,
    SCATTER: tl.constexpr,
    EVERY: tl.constexpr,
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
    EVERY: steps after which fp32 sums are taken over to int32, LONG: to int64; 0: never.
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
    base = n * x_n + group * x_g
    across = p * w_p + group * w_g
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.int32)
    part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
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
            other=0.0,
        )
        b = tl.load(
            w + (across + r * w_r + s * w_s)[None, :] + deep[:, None],
            mask=(p < produced)[None, :] & (deep < summed)[:, None],
            other=0.0,
        )
        part = tl.dot(a, b, part)
        if EVERY > 0:
            if step % EVERY == EVERY - 1:
                total += part.to(total.dtype)
                part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    inside = (m < rows)[:, None] & (p < produced)[None, :]
    place = (n * y_n + oh * y_h + ow * y_w + group * y_g)[:, None] + (p * y_p)[None, :]
    if EVERY > 0:
        total += part.to(total.dtype)
    if SCALED:
        found = part
        if EVERY > 0:
            found = total.to(tl.float32)
        channel = group * produced + p
        own = tl.load(scale + channel * scale_p, mask=p < produced, other=0.0)
        found = _times(found, own[None, :], own)
        if BIASED:
            found = found + tl.load(bias + channel, mask=p < produced, other=0.0)[None, :]
        tl.store(y + place, found, mask=inside)
    else:
        if EVERY > 0:
            tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
        else:
            tl.store(y + place, part.to(y.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "pixels", "each", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
        "padding_h", "padding_w", "dilation_h", "dilation_w", "taps", "taps_w", "steps",
    ]
)  # fmt: skip
def correlate(
    x,
    z,
    y,
    pixels,
    each,
    produced,
    summed,
    x_digits,
    z_digits,
    groups,
    height,
    width,
    out_height,
    out_width,
    x_digit,
    z_digit,
    z_n,
    z_h,
    z_w,
    y_s,
    y_digit,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    taps,
    taps_w,
    steps,
    WIDE: tl.constexpr,
    EVERY: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """y[s, d, g, p, k, e, c] = the sum over pixels i of split s of x[d, i, g, p] z[e, k of i, g, c].

    x (digits, N, OH, OW, G, P), z (digits, N, H, W, G, C): integers as fp16, in C order but for
    the step of a digit; k of i: i * stride - padding + k * dilation.
    y: int32 in C order, y_s, y_digit its first steps.
    pixels: N * OH * OW; each: of a split, steps of DEEP; produced, summed: P, C.
    EVERY: as in multiply.  WIDE: places in x or z pass int32.
    Program: a tile of (d, p) x (e, c) for each tap, a split, a group.
    """
    columns = tl.cdiv(z_digits * summed, ACROSS)
    tap = tl.program_id(0) % taps
    column = tl.program_id(0) // taps % columns
    q = tl.program_id(0) // (taps * columns) * ROWS + tl.arange(0, ROWS)
    k = column * ACROSS + tl.arange(0, ACROSS)
    split, group = tl.program_id(1), tl.program_id(2)
    start = split * each
    end = min(start + each, pixels)
    r, s = tap // taps_w, tap % taps_w
    i = tl.arange(0, DEEP)
    if WIDE:
        start, group = start.to(tl.int64), group.to(tl.int64)
        q, k = q.to(tl.int64), k.to(tl.int64)
    left = (q // produced) * x_digit + group * produced + q % produced
    right = (k // summed) * z_digit + group * summed + k % summed
    inside_q, inside_k = q < x_digits * produced, k < z_digits * summed
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int32)
    part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    for step in range(steps):
        m = start + step * DEEP + i
        h = (m // out_width) % out_height * stride_h - padding_h + r * dilation_h
        v = m % out_width * stride_w - padding_w + s * dilation_w
        there = (h >= 0) & (v >= 0) & (h < height) & (v < width) & (m < end)
        a = tl.load(
            x + (m * (groups * produced))[:, None] + left[None, :],
            mask=(m < end)[:, None] & inside_q[None, :],
            other=0.0,
        )
        at = m // (out_width * out_height) * z_n + h * z_h + v * z_w
        b = tl.load(
            z + at[:, None] + right[None, :], mask=there[:, None] & inside_k[None, :], other=0.0
        )
        part = tl.dot(tl.trans(a), b, part)
        if step % EVERY == EVERY - 1:
            total += part.to(tl.int32)
            part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    total += part.to(tl.int32)
    row = (group * produced + q % produced) * taps + tap
    to = y + split.to(tl.int64) * y_s + (q // produced) * y_digit + row * (z_digits * summed)
    tl.store(to[:, None] + k[None, :], total, mask=inside_q[:, None] & inside_k[None, :])


@triton.jit(do_not_specialize=["size", "splits", "s1", "s2", "s3", "scale_c"])
def combine(
    x,
    y,
    scale,
    bias,
    size,
    channels,
    splits,
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
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y (s0, s1, s2, s3, channels) = the sum over splits and digits of
    x (splits, LEFT digits, s0, s1, s2, s3, RIGHT digits, channels).

    The first of two digits counts 256.  SCALED, BIASED: as in multiply, of channels s3 * channels.
    size: of y.  WIDE: places pass int32.  Program: BLOCK of y.
    """
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    if not WIDE:
        e = e.to(tl.int32)
    row, c = e // channels, e % channels
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for split in range(splits):
        for d in tl.static_range(LEFT):
            for f in tl.static_range(RIGHT):
                at = split * x_s + d * x_digit + (row * RIGHT + f) * channels + c
                own = tl.load(x + at, mask=inside, other=0).to(tl.int64)
                total += own * (256 ** (LEFT - 1 - d + RIGHT - 1 - f))
    i3 = row % s3
    to = i3 * y_3 + row // s3 % s2 * y_2 + row // (s2 * s3) % s1 * y_1
    to += row // (s1 * s2 * s3) * y_0 + c * y_c
    if SCALED:
        found = total.to(tl.float32)
        channel = i3 * channels + c
        own = tl.load(scale + channel * scale_c, mask=inside, other=0.0)
        found = _times(found, own, own)
        if BIASED:
            found = found + tl.load(bias + channel, mask=inside, other=0.0)
        tl.store(y + to, found, mask=inside)
    else:
        tl.store(y + to, total.to(y.dtype.element_ty), mask=inside)
