"""Triton kernel of a convolution's exact gradient by its weight: see triton_convolution."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "pixels", "each", "height", "width", "out_height", "out_width", "stride_h", "stride_w",
        "padding_h", "padding_w", "dilation_h", "dilation_w", "taps", "taps_w", "steps", "every",
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
    every,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """y[s, d, g, p, k, e, c] = the sum over pixels i of split s of x[d, i, g, p] z[e, k(i), g, c].

    x (digits, N, OH, OW, G, P), z (digits, N, H, W, G, C): integers as fp16, in C order but for
    the step of a digit; k(i): i * stride - padding + k * dilation.
    y: int32 in C order, y_s, y_digit its first steps.
    pixels: N * OH * OW; each: of a split, steps of DEEP; produced, summed: P, C.
    every: as in multiply.  WIDE: places in x or z pass int32.
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
        if step % every == every - 1:
            total += part.to(tl.int32)
            part = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    total += part.to(tl.int32)
    row = (group * produced + q % produced) * taps + tap
    to = y + split.to(tl.int64) * y_s + (q // produced) * y_digit + row * (z_digits * summed)
    tl.store(to[:, None] + k[None, :], total, mask=inside_q[:, None] & inside_k[None, :])
