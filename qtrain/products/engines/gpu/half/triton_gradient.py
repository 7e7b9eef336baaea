"""The Triton kernels of a grad_weight on 16-bit tensor cores: partial sums, and their sum."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_scales import scaled

_SIZES = [
    "rows", "height", "width", "out_height", "out_width", "stride_h", "stride_w", "padding_h",
    "padding_w", "dilation_h", "dilation_w", "taps", "taps_w", "tiles", "steps", "y_part", "y_g",
    "y_o", "y_r", "y_s",
]  # fmt: skip
_NUMBERS = ["g_zero", "x_zero", "scale"]


@triton.jit
def _half(v, zero, AFFINE: tl.constexpr, BF16: tl.constexpr, WIDENED: tl.constexpr):
    """v - zero, which bf16 or fp16 holds, in that; WIDENED: in fp32 again."""
    v = v.to(tl.float32)
    if AFFINE:
        v = v - zero
    v = v.to(tl.bfloat16) if BF16 else v.to(tl.float16)
    return v.to(tl.float32) if WIDENED else v


@triton.jit
def _store(place, found, mask, scale, SCALED: tl.constexpr):
    """fl32(found * scale), a number in fp32 or fp64."""
    if SCALED:
        found = scaled(found, tl.load(scale), 0)  # to ask whether fp32 holds it takes registers
    tl.store(place, found, mask=mask)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_NUMBERS)
def gradient(
    g,
    x,
    y,
    g_zero,
    x_zero,
    scale,
    rows,
    produced,
    channels,
    height,
    width,
    out_height,
    out_width,
    g_m,
    g_g,
    x_n,
    x_g,
    x_h,
    x_w,
    y_part,
    y_g,
    y_o,
    y_c,
    y_r,
    y_s,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    taps,
    taps_w,
    tiles,
    steps,
    G_AFFINE: tl.constexpr,
    X_AFFINE: tl.constexpr,
    SCALED: tl.constexpr,
    FLAT: tl.constexpr,
    PACKED: tl.constexpr,
    TAPS: tl.constexpr,
    BF16: tl.constexpr,
    WIDENED: tl.constexpr,
    WIDE: tl.constexpr,
    TALL: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """y[part, group, o, c, k] = the sum over a part's rows m of g[m, o] x[m * stride - padding +
    k * dilation, c], the operands in bf16 or fp16, the sums in fp32; times scale where SCALED.

    g (N, G, O, H, W), whose N * H * W rows lie g_m apart; x (N, G, C, H, W); any dtypes, the
    strides of o and c are 1.  g_zero, x_zero: what is taken from them where AFFINE, 0-d int32.
    taps: R * S; taps_w: S; tiles: of a part; steps: of DEEP rows in a part.
    FLAT: one tap, and x's row of m lies at m * x_w.  PACKED: c and k are one axis to a tile; else a
    tile has TAPS (1 or 3) neighbours in a row of the kernel.  WIDE: places in g or x pass int32.
    WIDENED: the product's operands are in fp32 again, as the interpreter needs them.
    Program: a tile, TALL x ACROSS, of a part.
    """
    part, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    blocks = tl.cdiv(channels * taps if PACKED else channels, ACROSS)
    columns = blocks if PACKED else blocks * (taps // TAPS)
    downs = tl.cdiv(produced, TALL)
    group, tile = tile // (columns * downs), tile % (columns * downs)
    o = tile // columns * TALL + tl.arange(0, TALL)
    c = (tile % columns % blocks) * ACROSS + tl.arange(0, ACROSS)
    tap = tile % columns // blocks * TAPS
    inside = c < channels
    if PACKED:
        tap, c = c // channels, c % channels
        inside = tap < taps
    r, s = tap // taps_w, tap % taps_w
    up, left = r * dilation_h - padding_h, s * dilation_w - padding_w
    if PACKED:
        up, left = up[None, :], left[None, :]
    m = part * steps * DEEP + tl.arange(0, DEEP)
    if WIDE:
        m, group = m.to(tl.int64), group.to(tl.int64)
    # a row's place: image, line, column; kept from step to step, as divisions are slow
    ow = m % out_width
    oh = (m // out_width) % out_height
    n = m // (out_width * out_height)
    more_w = DEEP % out_width
    more_h = (DEEP // out_width) % out_height
    more_n = DEEP // out_width // out_height
    g_shift, x_shift = 0.0, 0.0
    if G_AFFINE:
        g_shift = tl.load(g_zero).to(tl.float32)
    if X_AFFINE:
        x_shift = tl.load(x_zero).to(tl.float32)
    g += group * g_g
    x += group * x_g
    total = tl.zeros((TALL, ACROSS), dtype=tl.float32)
    second, third = total, total
    for _ in range(steps):
        row = (m < rows)[:, None]
        mask = (o < produced)[:, None] & (m < rows)[None, :]
        a = tl.load(g + o[:, None] + (m * g_m)[None, :], mask, other=0)
        a = _half(a, g_shift, G_AFFINE, BF16, WIDENED)
        for k in tl.static_range(TAPS):
            if FLAT:
                at, there = (m * x_w)[:, None], row
            else:
                h = (oh * stride_h)[:, None] + up
                v = (ow * stride_w)[:, None] + left + k * dilation_w
                there = row & (h >= 0) & (v >= 0) & (h < height) & (v < width)
                at = (n * x_n)[:, None] + h * x_h + v * x_w
            b = tl.load(x + at + c[None, :], there & inside[None, :], other=0)
            # padding stays 0: it is no code
            shift = tl.where(there, x_shift, 0.0) if X_AFFINE else 0.0
            b = _half(b, shift, X_AFFINE, BF16, WIDENED)
            if k == 0:
                total = tl.dot(a, b, total)
            elif k == 1:
                second = tl.dot(a, b, second)
            else:
                third = tl.dot(a, b, third)
        m += DEEP
        if not FLAT:
            ow += more_w
            beyond = (ow >= out_width).to(tl.int32)
            ow -= beyond * out_width
            oh += more_h + beyond
            beyond = (oh >= out_height).to(tl.int32)
            oh -= beyond * out_height
            n += more_n + beyond
    place = y + part * y_part + group * y_g + (o * y_o)[:, None]
    place = place + (c * y_c + r * y_r + s * y_s)[None, :]
    mask = (o < produced)[:, None] & inside[None, :]
    _store(place, total, mask, scale, SCALED)
    if TAPS == 3:
        _store(place + y_s, second, mask, scale, SCALED)
        _store(place + 2 * y_s, third, mask, scale, SCALED)


@triton.jit(
    do_not_specialize=[
        "parts", "produced", "channels", "taps", "taps_w", "y_g", "y_o", "y_c", "y_r", "y_s",
        "steps",
    ],
    do_not_specialize_on_alignment=["scale"],
)  # fmt: skip
def add(
    partial,
    y,
    scale,
    parts,
    size,
    produced,
    channels,
    taps,
    taps_w,
    y_g,
    y_o,
    y_c,
    y_r,
    y_s,
    steps,
    SCALED: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """y (G, O, C, R, S) = the sum of its parts, times scale where SCALED.

    partial (parts, G, O, R, S, C); size: of a part; steps: of DOWN parts.
    """
    e = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    k = tl.arange(0, DOWN)
    total = tl.zeros((DOWN, ACROSS), dtype=tl.float32)
    for _ in range(steps):
        mask = (k < parts)[:, None] & (e < size)[None, :]
        total += tl.load(partial + (k * size)[:, None] + e[None, :], mask, other=0.0)
        k += DOWN
    c, rest = e % channels, e // channels
    tap, rest = rest % taps, rest // taps
    o, group = rest % produced, rest // produced
    place = group * y_g + o * y_o + c * y_c + tap // taps_w * y_r + tap % taps_w * y_s
    _store(y + place, tl.sum(total, 0), e < size, scale, SCALED)
