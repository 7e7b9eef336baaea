"""Triton kernels of a quantizer: elements, from given scales, from extremes, from a granule.

x is walked in the order of its memory: see layout.Walk, whose rows and outer axes the kernels are
given.  A granule's elements share a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_made import before, made, made_by_one
from .triton_numbers import ordered, place, units
from .triton_range import gathered
from .triton_scale import spread

_UNSPECIAL = ["granule_step", "index_step", "c0", "c1", "parts", "window", "rule", "target"]


@triton.jit(do_not_specialize=_UNSPECIAL)
def elements(
    x,
    result,
    scale,
    zero_point,
    outer,
    factor,
    key,
    ends,
    kept,
    running_low,
    running_high,
    running_share,
    running_steps,
    lows,
    highs,
    each,
    blocks,
    parts,
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
    momentum,
    window,
    reach,
    prescale,
    rule,
    target,
    AXES: tl.constexpr,
    ALONE: tl.constexpr,
    SCALED: tl.constexpr,
    MEASURED: tl.constexpr,
    AFFINE: tl.constexpr,
    FOLDED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
    PAST: tl.constexpr,
    WINDOW: tl.constexpr,
    LEVELS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    PRESCALED: tl.constexpr,
    POWER: tl.constexpr,
    NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr,
    S_INF: tl.constexpr,
    S_MODE: tl.constexpr,
    INTEGER: tl.constexpr,
    SIGNED: tl.constexpr,
    ZERO: tl.constexpr,
    INF: tl.constexpr,
    RANDOM: tl.constexpr,
    MODE: tl.constexpr,
    SIZE: tl.constexpr,
    STEPS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """round(x / scale) + zero_point, clamped to the format: see steps.elements_of.

    scale, zero_point: by granule of the walk; ALONE: one.  MEASURED: made here, of the extremes
    `ends` of each granule's parts, SIZE at most: see spread.  FOLDED: x times the granule's factor.
    each: elements of a granule, or all; blocks: programs of it, of STEPS times BLOCK elements;
    UNIT: see units, divides each.
    c0..: of an integer format its lowest and largest, else see numbers.floating.
    """
    program, alone = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    own = 1.0
    zero = 0.0
    if MEASURED:
        least, most = gathered(ends + 2 * program * parts, parts, SIZE)
        lowest, largest = c0, c1
        if not INTEGER:
            lowest, largest = 0.0, c2
        own, zero = spread(
            least, most, lowest, largest, scale + program, zero_point + program, outer, kept,
            kept + 1, kept + 2, running_low, running_high, running_share, running_steps, lows,
            highs, alone == 0, momentum, window, reach, prescale, rule, target, SYMMETRIC, RUNNING,
            UPDATE, USE, PAST, WINDOW, AFFINE, SIGNED, LEVELS, RECIPROCAL, PRESCALED, POWER,
            NARROW, S_SIGNED, S_ZERO, S_INF, S_MODE,
        )  # fmt: skip
    elif ALONE and SCALED:
        own = tl.load(scale)
        if AFFINE:
            zero = tl.load(zero_point).to(tl.float32)
    head, lane = units(BLOCK, UNIT)
    for step in range(STEPS):
        i = (alone * STEPS + step) * BLOCK + head
        inside = i < each
        at, to, index, granule = place(
            program * each + i, lane, row, index_step, granule_step, sizes, x_steps, result_steps,
            index_steps, granule_steps, AXES, UNIT,
        )  # fmt: skip
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if FOLDED:
            v = v * tl.load(factor + granule, mask=inside, other=0.0)
        by, shift = own, zero
        if SCALED and not (MEASURED or ALONE):
            by = tl.load(scale + granule, mask=inside, other=1.0)
            if AFFINE:
                shift = tl.load(zero_point + granule, mask=inside, other=0).to(tl.float32)
        if SCALED:
            v, by = before(v, by, prescale, PRESCALED, RECIPROCAL)
        if SCALED and (MEASURED or ALONE):
            v = made_by_one(
                v, by, shift, index, key, c0, c1, c2, c3, c4, INTEGER, SIGNED, ZERO, INF, RANDOM,
                MODE, SIGNED and not AFFINE and result.dtype.element_ty == tl.int8,
            )  # fmt: skip
        else:
            v = made(
                v, by, shift, index, key, c0, c1, c2, c3, c4, SCALED, INTEGER, SIGNED, ZERO, INF,
                RANDOM, MODE,
            )  # fmt: skip
        tl.store(result + to, v.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_UNSPECIAL)
def whole(
    x,
    result,
    scale,
    zero_point,
    outer,
    factor,
    key,
    running_low,
    running_high,
    running_share,
    running_steps,
    lows,
    highs,
    each,
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
    momentum,
    window,
    reach,
    prescale,
    rule,
    target,
    AXES: tl.constexpr,
    AFFINE: tl.constexpr,
    FOLDED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
    PAST: tl.constexpr,
    WINDOW: tl.constexpr,
    LEVELS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    PRESCALED: tl.constexpr,
    POWER: tl.constexpr,
    NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr,
    S_INF: tl.constexpr,
    S_MODE: tl.constexpr,
    INTEGER: tl.constexpr,
    SIGNED: tl.constexpr,
    ZERO: tl.constexpr,
    INF: tl.constexpr,
    RANDOM: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A small granule, a program, from its extremes to its elements: see `elements`.

    each: BLOCK at most.
    """
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < each
    at, to, index, granule = place(
        program * each + i, 0, row, index_step, granule_step, sizes, x_steps, result_steps,
        index_steps, granule_steps, AXES, 1,
    )  # fmt: skip
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if FOLDED:
        v = v * tl.load(factor + granule, mask=inside, other=0.0)
    ends = ordered(v)
    least = tl.min(tl.where(inside, ends, 0x7FFFFFFF), 0)
    most = tl.max(tl.where(inside, ends, -0x80000000), 0)
    lowest, largest = c0, c1
    if not INTEGER:
        lowest, largest = 0.0, c2
    own, zero = spread(
        least, most, lowest, largest, scale + program, zero_point + program, outer, running_low,
        running_high, running_share, running_low, running_high, running_share, running_steps,
        lows, highs, program >= 0, momentum, window, reach, prescale, rule, target, SYMMETRIC,
        RUNNING, UPDATE, USE, PAST, WINDOW, AFFINE, SIGNED, LEVELS, RECIPROCAL, PRESCALED, POWER,
        NARROW, S_SIGNED, S_ZERO, S_INF, S_MODE,
    )  # fmt: skip
    v, own = before(v, own, prescale, PRESCALED, RECIPROCAL)
    v = made_by_one(
        v, own, zero, index, key, c0, c1, c2, c3, c4, INTEGER, SIGNED, ZERO, INF, RANDOM, MODE,
        SIGNED and not AFFINE and result.dtype.element_ty == tl.int8,
    )  # fmt: skip
    tl.store(result + to, v.to(result.dtype.element_ty), mask=inside)
