"""The Triton kernel of an int8 convolution, gather or scatter, with its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_places import first_met, first_place, moved, place_met, read, tile
from ..triton_scales import fl24, is_held, scaled

#: no number compiles a kernel anew: what matters of them are UNIT, OUT and LAST
_NUMBERS = [
    "rows", "produced", "summed", "height", "width", "out_height", "out_width", "x_n", "x_g", "x_h",
    "x_w", "w_g", "w_p", "w_r", "w_s", "y_n", "y_g", "y_p", "y_h", "y_w", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "taps_w", "less", "steps", "scale_p",
    "other_p",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def convolve(
    x,
    w,
    y,
    scale,
    other,
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
    other_p,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    taps_w,
    less,
    steps,
    WIDE: tl.constexpr,
    UNIT: tl.constexpr,
    OUT: tl.constexpr,
    LAST: tl.constexpr,
    MOVES: tl.constexpr,
    EVEN: tl.constexpr,
    X_ROWS: tl.constexpr,
    Y_ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
    FILLED: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, g, p, i] = the sum over c and taps k of x[n, g, c, .] w[g, p, c, k]: see geometry.

    x (N, G, C, H, W), w (G, P, C, R, S): int8; their strides, that of c is 1.
    y (N, G, P, H, W): int32 sums, or with SCALES fp32: fl32(fl32(sum) * scale), then + bias
    (G * P), fp32; of 1 scale (G * P), fp32 or fp64, or of 2, fp32: their product, see `fl24`.
    zero_point (int32), when AFFINE: is taken from x, which holds the elements `less` so much,
    FILLED: where no element is met too.  sums (G * P): of w over c, taps.
    rows: N * H * W of y; steps: of DEEP channels of a tap, EVEN: which are whole; MOVES: see
    triton_places.  X_ROWS, Y_ROWS: whether the row m of x (of a kernel that stands still, the same
    number), or of y, lies at m times the step of its last axis.  WIDE: places pass int32.
    UNIT: summed and the strides of x and w are given in sixteens, or in ones; OUT:
    produced and the strides of y but y_p, which is 1 where LAST.
    Program: a tile of a group, ROWS x ACROSS; BAND of them share what they read.
    """
    summed *= UNIT
    x_n, x_g, x_h, x_w = x_n * UNIT, x_g * UNIT, x_h * UNIT, x_w * UNIT
    w_g, w_p, w_r, w_s = w_g * UNIT, w_p * UNIT, w_r * UNIT, w_s * UNIT
    produced *= OUT
    y_n, y_g, y_h, y_w = y_n * OUT, y_g * OUT, y_h * OUT, y_w * OUT
    if LAST:
        y_p = 1
    if WIDE:
        x_h, x_w = x_h.to(tl.int64), x_w.to(tl.int64)
    group, m, p = tile(rows, produced, WIDE, ROWS, ACROSS, BAND)
    c = tl.arange(0, DEEP)
    zero = 0
    if AFFINE:
        zero = tl.load(zero_point) - less
    n, oh, ow, top, left = first_met(
        m, rows, out_height, out_width, stride_h, stride_w, padding_h, padding_w, MOVES
    )
    held = w + (tl.minimum(p, produced - 1) * w_p + group * w_g)[None, :] + c[:, None]
    if X_ROWS:
        first = tl.minimum(m, rows - 1) * x_w + group * x_g
    else:
        first = first_place(n * x_n + group * x_g, top, left, x_h, x_w, MOVES)
    total = tl.zeros((ROWS, ACROSS), dtype=tl.int32)
    k, r, s = 0, 0, 0
    for _ in range(steps):
        at, there = place_met(
            first, top, left, r * dilation_h, s * dilation_w, height, width, stride_h, stride_w,
            x_h, x_w, MOVES,
        )  # fmt: skip
        inside = c < summed - k
        a = read(x + (at + k)[:, None] + c[None, :], there[:, None], inside[None, :], MOVES, EVEN)
        if FILLED:
            a = tl.where(there[:, None], a, zero.to(tl.int8))
        within = inside[:, None]
        b = read(held + (r * w_r + s * w_s + k), within, within, "still", EVEN)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        k, r, s = moved(k, r, s, DEEP, summed, taps_w, MOVES)
    inside = (m < rows)[:, None] & (p < produced)[None, :]
    channel = group * produced + p
    if AFFINE:
        total = total - zero * tl.load(sums + channel, mask=p < produced, other=0)[None, :]
    if Y_ROWS:
        at = m * y_w + group * y_g
    else:
        at = n * y_n + oh * y_h + ow * y_w + group * y_g
    place = at[:, None] + (p * y_p)[None, :]
    if SCALES > 0:
        own = tl.load(scale + channel * scale_p, mask=p < produced, other=0.0)
        if SCALES > 1:
            own = fl24(own, tl.load(other + channel * other_p, mask=p < produced, other=0.0))
        found = scaled(total.to(tl.float32), own[None, :], tl.min(is_held(own), 0))
        if BIASED:
            found = found + tl.load(bias + channel, mask=p < produced, other=0.0)[None, :]
        tl.store(y + place, found, mask=inside)
    else:
        tl.store(y + place, total, mask=inside)
