"""Triton kernels of a quantizer's range and scale.

x is walked in the order of its memory: see layout.Walk, whose rows and outer axes the kernels are
given.  A granule's elements share a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import is_finite, larger, nearest, number, ordered, place


@triton.jit(do_not_specialize=["granule_step", "index_step"])
def extremes(
    x,
    factor,
    low,
    high,
    each,
    row,
    index_step,
    granule_step,
    sizes,
    x_steps,
    result_steps,
    index_steps,
    granule_steps,
    AXES: tl.constexpr,
    FOLDED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Smallest and largest, ordered (int32), of each granule's parts.

    Program (granule, part); each: elements of a granule, which follow one another along the walk;
    low, high: (granules, parts).  FOLDED: of x times factor, one granule's, by the walk's granules.
    """
    granule, part = tl.program_id(0), tl.program_id(1)
    start = granule * each
    least = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
    most = tl.full((BLOCK,), -0x80000000, tl.int32)
    for step in range(STEPS):
        i = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = i < each
        at, _, _, group = place(
            start + i, row, index_step, granule_step, sizes, x_steps, result_steps, index_steps,
            granule_steps, AXES,
        )  # fmt: skip
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if FOLDED:
            v = v * tl.load(factor + group, mask=inside, other=0.0)
        key = ordered(v)
        least = tl.minimum(least, tl.where(inside, key, 0x7FFFFFFF))
        most = tl.maximum(most, tl.where(inside, key, -0x80000000))
    slot = granule * tl.num_programs(1) + part
    tl.store(low + slot, tl.min(least, 0))
    tl.store(high + slot, tl.max(most, 0))


@triton.jit
def _moved(old, new, weight):
    half = old * 0.5
    return ((new * 0.5 - half) * weight + half) * 2.0


@triton.jit
def _range(
    low,
    high,
    running_low,
    running_high,
    running_share,
    running_steps,
    momentum,
    SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
):
    """The range that a rule gives for these extremes, moving the running one: see ranges, Ema."""
    if SYMMETRIC:
        high = larger(tl.abs(low), tl.abs(high))
        low = high * -1.0
    if RUNNING:
        finite = is_finite(low) & is_finite(high)
        share, steps = tl.load(running_share), tl.load(running_steps)
        divisor = tl.where(share == 0.0, 1.0, share)
        old_low = tl.div_rn(tl.load(running_low), divisor)
        old_high = tl.div_rn(tl.load(running_high), divisor)
        if UPDATE:
            rate = tl.where(share == 0.0, 1.0, momentum)
            old_low = tl.where(finite, _moved(old_low, low, rate), old_low)
            old_high = tl.where(finite, _moved(old_high, high, rate), old_high)
            share = tl.where(finite | (share > 0.0), 1.0, 0.0)
            tl.store(running_low, old_low)
            tl.store(running_high, old_high)
            tl.store(running_share, share)
            tl.store(running_steps, steps + finite.to(tl.int64))
        if USE:
            low = tl.where(share > 0.0, old_low, low)
            high = tl.where(share > 0.0, old_high, high)
            low = tl.where(finite, low, float("nan"))
            high = tl.where(finite, high, float("nan"))
    return low, high


@triton.jit(do_not_specialize=["parts"])
def scales(
    low,
    high,
    scale,
    zero_point,
    parts,
    lowest,
    largest,
    running_low,
    running_high,
    running_share,
    running_steps,
    momentum,
    SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
    AFFINE: tl.constexpr,
    SIGNED: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Scale and zero point of a granule, from the extremes of its parts: see steps.scale_of.

    Program: a granule; SIZE: a power of two, at least parts; lowest, largest: of the format.
    """
    granule = tl.program_id(0)
    i = tl.arange(0, SIZE)
    slot, inside = granule * parts + i, i < parts
    least = tl.min(tl.load(low + slot, mask=inside, other=0x7FFFFFFF), 0)
    most = tl.max(tl.load(high + slot, mask=inside, other=-0x80000000), 0)
    least, most = _range(
        number(least), number(most), running_low, running_high, running_share, running_steps,
        momentum, SYMMETRIC, RUNNING, UPDATE, USE,
    )  # fmt: skip
    if AFFINE:
        least = tl.where(least > 0.0, 0.0, least)
        most = tl.where(most < 0.0, 0.0, most)
        half = most * 0.5 - least * 0.5
        found = tl.div_rn(half, (largest - lowest) * 0.5)
        divisor = tl.where(found == 0.0, float("inf"), found)
        zero = lowest - nearest(tl.div_rn(least, divisor))
        zero = tl.where(zero < lowest, lowest, zero)
        zero = tl.where(zero > largest, largest, zero)
        tl.store(zero_point + granule, tl.where(zero == zero, zero, 0.0).to(tl.int32))
    else:
        if SIGNED:
            width = larger(tl.abs(least), tl.abs(most))
        else:
            width = tl.where(most < 0.0, 0.0, most)
            width = tl.where(is_finite(least), width, float("nan"))
        found = tl.div_rn(width, largest)
        beyond = (found == float("inf")) & (width < float("inf"))
        found = tl.where(beyond, 3.4028234663852886e38, found)
    tl.store(scale + granule, found)
