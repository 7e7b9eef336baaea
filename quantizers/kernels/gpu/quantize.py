"""Triton kernels of a quantizer: extremes, scales, elements.

x is walked in the order of its memory: see layout.Walk, whose rows and outer axes the kernels are
given.  A granule's elements share a scale.
"""

from __future__ import annotations

import sys
from types import ModuleType

import triton
import triton.language as tl

from .numbers import floating, integer, is_finite, larger, nearest, noise, number, ordered


def kernels() -> ModuleType:
    """These."""
    return sys.modules[__name__]


@triton.jit
def _place(
    i,
    row,
    index_step,
    granule_step,
    sizes,
    x_steps,
    result_steps,
    index_steps,
    granule_steps,
    AXES: tl.constexpr,
):
    """Where the elements at places i of the walk lie: in x and in the result, their logical index,
    their granule.  int32."""
    if AXES == 0:
        return i, i, i * index_step, i * granule_step
    across = i % row
    x, result, index, granule = across, across, across * index_step, across * granule_step
    rest = i // row
    for axis in tl.static_range(AXES):
        own = rest
        if axis < AXES - 1:
            own = rest % sizes[AXES - 1 - axis]
            rest = rest // sizes[AXES - 1 - axis]
        x += own * x_steps[AXES - 1 - axis]
        result += own * result_steps[AXES - 1 - axis]
        index += own * index_steps[AXES - 1 - axis]
        granule += own * granule_steps[AXES - 1 - axis]
    return x, result, index, granule


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
        at, _, _, group = _place(
            start + i, row, index_step, granule_step, sizes, x_steps, result_steps, index_steps,
            granule_steps, AXES,
        )  # fmt: skip
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if FOLDED:
            v = v * tl.load(factor + group, mask=inside, other=0.0)
        key = ordered(v)
        least = tl.minimum(least, tl.where(inside, key, 0x7FFFFFFF))
        most = tl.maximum(most, tl.where(inside, key, -0x80000000))
    place = granule * tl.num_programs(1) + part
    tl.store(low + place, tl.min(least, 0))
    tl.store(high + place, tl.max(most, 0))


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
    place, inside = granule * parts + i, i < parts
    least = tl.min(tl.load(low + place, mask=inside, other=0x7FFFFFFF), 0)
    most = tl.max(tl.load(high + place, mask=inside, other=-0x80000000), 0)
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


@triton.jit(do_not_specialize=["granule_step", "index_step", "c0", "c1"])
def elements(
    x,
    result,
    scale,
    zero_point,
    factor,
    key,
    size,
    row,
    index_step,
    granule_step,
    sizes,
    x_steps,
    result_steps,
    index_steps,
    granule_steps,
    c0,
    c1,
    c2,
    c3,
    c4,
    AXES: tl.constexpr,
    ALONE: tl.constexpr,
    SCALED: tl.constexpr,
    AFFINE: tl.constexpr,
    FOLDED: tl.constexpr,
    INTEGER: tl.constexpr,
    SIGNED: tl.constexpr,
    ZERO: tl.constexpr,
    INF: tl.constexpr,
    RANDOM: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """round(x / scale) + zero_point, clamped to the format: see steps.elements_of.

    scale, zero_point: by granule of the walk; ALONE: one.  FOLDED: x times the granule's factor.
    c0..: of an integer format its lowest and largest, else see numbers.floating.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    at, to, index, granule = _place(
        i, row, index_step, granule_step, sizes, x_steps, result_steps, index_steps,
        granule_steps, AXES,
    )  # fmt: skip
    source = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if FOLDED:
        source = source * tl.load(factor + granule, mask=inside, other=0.0)
    v = source
    if SCALED:
        if ALONE:
            own = tl.load(scale)
        else:
            own = tl.load(scale + granule, mask=inside, other=1.0)
        v = tl.div_rn(v, tl.where(own == 0.0, float("inf"), own))
    bits = tl.zeros((BLOCK,), tl.uint32)
    if RANDOM > 0:
        bits = noise(index, tl.load(key))
    if INTEGER:
        zero = 0.0
        if AFFINE:
            if ALONE:
                zero = tl.load(zero_point).to(tl.float32)
            else:
                zero = tl.load(zero_point + granule, mask=inside, other=0).to(tl.float32)
        v = integer(v, zero, bits, c0, c1, RANDOM, MODE)
    else:
        v = floating(v, source, bits, c0, c1, c2, c3, c4, SIGNED, ZERO, INF, RANDOM, MODE)
    tl.store(result + to, v.to(result.dtype.element_ty), mask=inside)


@triton.jit
def unshift(x, result, zero_point, size, AFFINE: tl.constexpr, BLOCK: tl.constexpr):
    """Integers without their zero point, in fp32."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    v = tl.load(x + i, mask=inside, other=0).to(tl.float32)
    if AFFINE:
        v = v - tl.load(zero_point).to(tl.float32)
    tl.store(result + i, v, mask=inside)


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["value"])
def fold(key, value, result, LOADED: tl.constexpr):
    """noise.fold of one key and one value, or when LOADED of the value there."""
    own = value
    if LOADED:
        own = tl.load(value)
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    mixed = _mix64(own.to(tl.uint64) + golden) ^ tl.load(key).to(tl.uint64)
    tl.store(result, _mix64(mixed + golden).to(tl.int64))
