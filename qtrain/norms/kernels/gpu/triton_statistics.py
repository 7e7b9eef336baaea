"""Triton kernels that read all of x for the statistics of its channels, part by part.

A channel's elements are cut into chunks, from `start` on: the first `longer` of `size` + 1
elements, the others of `size`; and each chunk into parts, of `steps` tiles each.  A program has a
part and COLUMNS channels.  It leaves one number, fp64 sums and fp32 extremes, for each channel and
part: (C, chunks * parts).  No number depends on anything but the shape.  ALIGNED: what the chunks'
ends, and the runs of PLANES, are multiples of.  AHEAD: tiles that are on their way at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import before_relu, multiple, places, sign

_SIZES = ["start", "size", "longer", "parts", "steps"]


@triton.jit
def _part(
    start,
    size,
    longer,
    parts,
    steps,
    channels,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """This program's first element, its chunk's end, its channels, and the place of its numbers."""
    tiles = tl.cdiv(channels, COLUMNS)
    slot = tl.program_id(0) // tiles
    slots = tl.num_programs(0) // tiles
    c = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    chunk = slot // parts
    first = start + chunk * size + tl.minimum(chunk, longer)
    end = first + size + tl.where(chunk < longer, 1, 0)
    first = multiple(first + slot % parts * steps * ROWS, ALIGNED)
    return first, multiple(end, ALIGNED), c, c * slots + slot


@triton.jit
def _extremes(values, found, value_to, at_to, slot, inside, LARGEST: tl.constexpr):
    """Keeps the best of (ROWS, COLUMNS) values and the least index of equal ones."""
    if LARGEST:
        best = tl.max(values, 0)
    else:
        best = tl.min(values, 0)
    first = tl.min(tl.where(values == best[None, :], found, 0x7FFFFFFF), 0)
    tl.store(value_to + slot, best, mask=inside)
    tl.store(at_to + slot, first, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def moments(
    x,
    sums,
    squares,
    highs,
    lows,
    high_ats,
    low_ats,
    channels,
    width,
    start,
    size,
    longer,
    parts,
    steps,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SQUARES: tl.constexpr,
    EXTREMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Sums of x; SQUARES: of d and d^2, d = x less its channel's first element; EXTREMES: besides,
    the largest and smallest x and the first elements that have them.  NaN is no extreme."""
    first, end, c, slot = _part(start, size, longer, parts, steps, channels, ALIGNED, ROWS, COLUMNS)
    e = first + tl.arange(0, ROWS)
    there = c < channels
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    if SQUARES:
        second = tl.zeros((ROWS, COLUMNS), tl.float64)
        base = tl.load(x + c * (width if PLANES else 1), mask=there, other=0.0)
        base = base.to(tl.float32).to(tl.float64)[None, :]
    if EXTREMES:
        high = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
        low = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
        own = tl.zeros((ROWS, COLUMNS), tl.int32) + tl.where(e < end, e, 0x7FFFFFFF)[:, None]
        high_at, low_at = own, own
    for _ in tl.range(0, steps, num_stages=AHEAD):
        inside = (e < end)[:, None] & there[None, :]
        at = places(e, c, channels, width, PLANES, ALIGNED)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d = v.to(tl.float64)
        if SQUARES:
            d = tl.where(inside, d - base, 0.0)
            second += d * d
        total += d
        if EXTREMES:
            above, below = inside & (v > high), inside & (v < low)
            high_at = tl.where(above, e[:, None], high_at)
            low_at = tl.where(below, e[:, None], low_at)
            high, low = tl.where(above, v, high), tl.where(below, v, low)
        e += ROWS
    tl.store(sums + slot, tl.sum(total, 0), mask=there)
    if SQUARES:
        tl.store(squares + slot, tl.sum(second, 0), mask=there)
    if EXTREMES:
        _extremes(high, high_at, highs, high_ats, slot, there, True)
        _extremes(low, low_at, lows, low_ats, slot, there, False)


@triton.jit(do_not_specialize=_SIZES)
def about(
    x,
    mean,
    sums,
    ats,
    channels,
    width,
    start,
    size,
    longer,
    parts,
    steps,
    KIND: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Of x - mean: sums of squares (fp64) or of magnitudes (fp64), or the largest magnitude (fp32)
    and the first element that has it: KIND "squares", "magnitudes", "largest"."""
    first, end, c, slot = _part(start, size, longer, parts, steps, channels, ALIGNED, ROWS, COLUMNS)
    e = first + tl.arange(0, ROWS)
    there = c < channels
    middle = tl.load(mean + c, mask=there, other=0.0)[None, :]
    if KIND == "largest":
        total = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
        found = tl.zeros((ROWS, COLUMNS), tl.int32) + tl.where(e < end, e, 0x7FFFFFFF)[:, None]
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for _ in tl.range(0, steps, num_stages=AHEAD):
        inside = (e < end)[:, None] & there[None, :]
        at = places(e, c, channels, width, PLANES, ALIGNED)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - middle
        if KIND == "squares":
            total += tl.where(inside, v * v, 0.0).to(tl.float64)
        elif KIND == "magnitudes":
            total += tl.where(inside, tl.abs(v), 0.0).to(tl.float64)
        else:
            v = tl.abs(v)
            above = inside & (v > total)
            found, total = tl.where(above, e[:, None], found), tl.where(above, v, total)
        e += ROWS
    if KIND == "largest":
        _extremes(total, found, sums, ats, slot, there, True)
    else:
        tl.store(sums + slot, tl.sum(total, 0), mask=there)


@triton.jit(do_not_specialize=_SIZES)
def gradient(
    x,
    grad,
    mean,
    scale,
    shift,
    grads,
    products,
    extras,
    channels,
    width,
    start,
    size,
    longer,
    parts,
    steps,
    RELU: tl.constexpr,
    ROUNDING: tl.constexpr,
    EXTRA: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Sums of g and g * centered, and of centered^2 or sign(centered), EXTRA "squares" or "signs".

    centered: x - mean; g: grad, where the ReLU of the output, rounded, was on.
    """
    first, end, c, slot = _part(start, size, longer, parts, steps, channels, ALIGNED, ROWS, COLUMNS)
    e = first + tl.arange(0, ROWS)
    there = c < channels
    middle = tl.load(mean + c, mask=there, other=0.0)[None, :]
    if RELU:
        s = tl.load(scale + c, mask=there, other=0.0)[None, :]
        b = tl.load(shift + c, mask=there, other=0.0)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    product = tl.zeros((ROWS, COLUMNS), tl.float64)
    if EXTRA != "":
        extra = tl.zeros((ROWS, COLUMNS), tl.float64)
    for _ in tl.range(0, steps, num_stages=AHEAD):
        inside = (e < end)[:, None] & there[None, :]
        at = places(e, c, channels, width, PLANES, ALIGNED)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - middle
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            g = before_relu(g, v, s, b, ROUNDING)
        total += g.to(tl.float64)
        product += tl.where(inside, g * v, 0.0).to(tl.float64)
        if EXTRA == "squares":
            extra += tl.where(inside, v * v, 0.0).to(tl.float64)
        if EXTRA == "signs":
            extra += tl.where(inside, sign(v), 0.0).to(tl.float64)
        e += ROWS
    tl.store(grads + slot, tl.sum(total, 0), mask=there)
    tl.store(products + slot, tl.sum(product, 0), mask=there)
    if EXTRA != "":
        tl.store(extras + slot, tl.sum(extra, 0), mask=there)
