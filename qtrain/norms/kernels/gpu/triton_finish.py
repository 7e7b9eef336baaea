"""Triton kernels that make of a norm's partial statistics what there is of each channel.

A program has COLUMNS channels, whose parts' numbers (C, chunks * parts) it adds up in fp64, in an
order that the shape fixes, rounded once; from there on the arithmetic is fp32, operation by
operation as `normalize` and the deviations have it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import folded, stabilized


@triton.jit
def _channels(channels, COLUMNS: tl.constexpr):
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    return c, c < channels


@triton.jit
def _added(sums, c, there, parts, slots, first, PARTS: tl.constexpr):
    """The sum (COLUMNS,) of each channel's parts from the first on, fp64."""
    p = tl.arange(0, PARTS)
    inside = there[:, None] & (p < parts)[None, :]
    return tl.sum(
        tl.load(sums + (c * slots + first)[:, None] + p[None, :], mask=inside, other=0.0), 1
    )


@triton.jit
def _best(values, ats, c, there, parts, slots, first, PARTS: tl.constexpr, LARGEST: tl.constexpr):
    """The best (COLUMNS,) of each channel's parts from the first on, and the least of its ats."""
    p = tl.arange(0, PARTS)
    inside = there[:, None] & (p < parts)[None, :]
    slot = (c * slots + first)[:, None] + p[None, :]
    if LARGEST:
        value = tl.load(values + slot, mask=inside, other=float("-inf"))
        best = tl.max(value, 1)
    else:
        value = tl.load(values + slot, mask=inside, other=float("inf"))
        best = tl.min(value, 1)
    at = tl.load(ats + slot, mask=inside, other=0x7FFFFFFF)
    return best, tl.min(tl.where(value == best[:, None], at, 0x7FFFFFFF), 1)


@triton.jit
def _of_chunks(x, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr):
    """The sum of each channel's chunks."""
    return tl.sum(tl.reshape(x, (COLUMNS, CHUNKS)), 1)


@triton.jit(do_not_specialize=["parts", "longer", "shorter", "count"])
def statistics(
    x,
    sums,
    squares,
    highs,
    lows,
    high_ats,
    low_ats,
    mean,
    sigma,
    scale,
    shift,
    where,
    slope,
    weight,
    bias,
    channels,
    x_step,
    parts,
    longer,
    shorter,
    count,
    factor,
    longer_factor,
    eps,
    KIND: tl.constexpr,
    STABLE: tl.constexpr,
    ENDS: tl.constexpr,
    CENTERED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean, sigma, scale and shift of each channel, (C,); of what `moments` found, or `about`.

    KIND      "mean": that alone;  "squares": sigma = factor * root of the mean square about it;
              "magnitudes": the mean is known, squares: sums of magnitudes;  "ones": sigma = 1;
              "extremes": the sum over the chunks of factor (longer_factor of the first `longer`)
              times high - low, and where (int64) and slope (C, 2 * chunks): see Estimate
    ENDS      of the others besides, where (C, 2): the largest and the smallest x
    CENTERED  else the mean is 0
    longer    chunks of one element more than the `shorter` others; CHUNKS: at least both
    x_step    between the channels' first elements
    """
    c, there = _channels(channels, COLUMNS)
    slots = parts * (longer + shorter)
    number = count.to(tl.float64)
    if KIND == "magnitudes":
        middle = tl.load(mean + c, mask=there, other=0.0)
        total = _added(squares, c, there, parts, slots, 0, PARTS).to(tl.float32)
        deviation = tl.div_rn(total, tl.zeros_like(total) + number.to(tl.float32)) * factor
    elif KIND == "extremes":
        r = tl.arange(0, COLUMNS * CHUNKS)
        own, chunk = tl.program_id(0) * COLUMNS + r // CHUNKS, r % CHUNKS
        inside = (own < channels) & (chunk < longer + shorter)
        first = chunk * parts
        high, high_at = _best(highs, high_ats, own, inside, parts, slots, first, PARTS, True)
        low, low_at = _best(lows, low_ats, own, inside, parts, slots, first, PARTS, False)
        # of the longer chunks all that is high, then all that is low; then of the others
        early = chunk < longer
        alike = tl.where(early, longer, shorter)
        place = own * (2 * (longer + shorter)) + chunk + tl.where(early, 0, longer)
        one = tl.where(early, longer_factor, factor)
        tl.store(where + place, high_at.to(tl.int64), mask=inside)
        tl.store(where + place + alike, low_at.to(tl.int64), mask=inside)
        tl.store(slope + place, one, mask=inside)
        tl.store(slope + place + alike, -one, mask=inside)
        span = tl.where(inside, high - low, 0.0).to(tl.float64)
        early_spans = _of_chunks(tl.where(early, span, 0.0), COLUMNS, CHUNKS)
        spans = _of_chunks(tl.where(early, 0.0, span), COLUMNS, CHUNKS)
        total = _added(sums, own, inside, parts, slots, first, PARTS)
        total = _of_chunks(total, COLUMNS, CHUNKS)
        middle = (total / number).to(tl.float32)
        deviation = early_spans.to(tl.float32) * longer_factor
        deviation = deviation + spans.to(tl.float32) * factor
        # comparisons skip NaN, sums do not
        deviation = tl.where(tl.abs(middle) < float("inf"), deviation, float("nan"))
    else:
        average = _added(sums, c, there, parts, slots, 0, PARTS) / number
        base = tl.zeros((COLUMNS,), tl.float64)
        if KIND == "squares":
            base += tl.load(x + c * x_step, mask=there, other=0.0).to(tl.float32).to(tl.float64)
        if ENDS:
            _, high_at = _best(highs, high_ats, c, there, parts, slots, 0, PARTS, True)
            _, low_at = _best(lows, low_ats, c, there, parts, slots, 0, PARTS, False)
            tl.store(where + 2 * c, high_at.to(tl.int64), mask=there)
            tl.store(where + 2 * c + 1, low_at.to(tl.int64), mask=there)
        middle = (base + average).to(tl.float32)
        deviation = tl.zeros((COLUMNS,), tl.float32) + 1.0
    if not CENTERED:
        middle = tl.zeros((COLUMNS,), tl.float32)
    if KIND == "squares":
        # of (x - mean)^2 = (d - own)^2; the sums are of d = x - base and d^2
        own = middle.to(tl.float64) - base
        square = _added(squares, c, there, parts, slots, 0, PARTS) / number
        square = square - own * (2.0 * average - own)
        square = tl.where(square < 0.0, 0.0, square)
        deviation = tl.sqrt_rn(square.to(tl.float32)) * factor
    tl.store(mean + c, middle, mask=there)
    if KIND != "mean":
        tl.store(sigma + c, deviation, mask=there)
        own_scale, own_shift = folded(
            stabilized(deviation, eps, STABLE), weight, bias, c, there, WEIGHT, BIAS
        )
        tl.store(scale + c, own_scale, mask=there)
        tl.store(shift + c, own_shift, mask=there)


@triton.jit(do_not_specialize=["parts", "count", "carriers"])
def gradient(
    grads,
    products,
    extras,
    sigma,
    scale,
    slope,
    grad_weight,
    grad_bias,
    offset,
    factor,
    values,
    channels,
    parts,
    count,
    carriers,
    constant,
    eps,
    SLOPE: tl.constexpr,
    STABLE: tl.constexpr,
    CENTERED: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What `normalize.gradients` makes of the sums: the gradients of weight and bias, and of the
    input the offset and its slope's factor or, at the carriers, values (C, J).

    SLOPE   "l2": orthogonal to the centered input;  "centered", "sign": of that deviation's own,
            whose dense factor is constant / (divisor * count), or constant;  "values";  ""
    """
    c, there = _channels(channels, COLUMNS)
    divisor = stabilized(tl.load(sigma + c, mask=there, other=1.0), eps, STABLE)
    own_scale = tl.load(scale + c, mask=there, other=0.0)
    total = _added(grads, c, there, parts, parts, 0, PARTS).to(tl.float32)
    product = _added(products, c, there, parts, parts, 0, PARTS).to(tl.float32)
    product = tl.div_rn(product, divisor)
    tl.store(grad_weight + c, product, mask=there)
    tl.store(grad_bias + c, total, mask=there)
    of_divisor = -product * own_scale
    moved = -total * own_scale
    number = tl.zeros((COLUMNS,), tl.float32) + count.to(tl.float32)
    if SLOPE == "l2":
        more = _added(extras, c, there, parts, parts, 0, PARTS).to(tl.float32)
        ratio = tl.div_rn(of_divisor * divisor, more)
        tl.store(factor + c, tl.where(more == 0.0, 0.0, ratio), mask=there)
    if SLOPE == "centered":
        one = tl.zeros((COLUMNS,), tl.float32) + 1.0
        dense = tl.div_rn(one, divisor * number) * constant
        tl.store(factor + c, of_divisor * dense, mask=there)
    if SLOPE == "sign":
        more = _added(extras, c, there, parts, parts, 0, PARTS).to(tl.float32)
        tl.store(factor + c, of_divisor * constant, mask=there)
        moved = moved - of_divisor * constant * more
    if SLOPE == "values":
        shared = tl.zeros((COLUMNS,), tl.float64)
        for j in range(carriers):
            own = c * carriers + j
            value = of_divisor * tl.load(slope + own, mask=there, other=0.0)
            tl.store(values + own, value, mask=there)
            shared += value.to(tl.float64)
        moved = moved - shared.to(tl.float32)
    if not CENTERED:
        moved = tl.zeros((COLUMNS,), tl.float32)
    tl.store(offset + c, tl.div_rn(moved, number), mask=there)
