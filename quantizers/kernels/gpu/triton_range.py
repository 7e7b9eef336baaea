"""The Triton kernel of a quantizer's range: extremes of a tensor's parts.

x is walked in the order of its memory: see layout.Walk, whose rows and outer axes the kernels are
given.  A granule's elements share a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import ordered, place, units


@triton.jit(do_not_specialize=["granule_step", "index_step"])
def extremes(
    x,
    ends,
    factor,
    kept,
    running_low,
    running_high,
    running_share,
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
    RUNNING: tl.constexpr,
    STEPS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ends (granules, 2, parts): the smallest and the largest, ordered, int32, of each granule's
    parts.

    Program (granule, part); each: elements of a granule, which follow one another along the walk;
    UNIT: see units, divides it.
    FOLDED: of x times factor, one granule's, by the walk's granules.
    RUNNING: copies a running range into kept (3), for those who read it while one of them moves it.
    """
    granule, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start = granule * each
    head, lane = units(BLOCK, UNIT)
    least = (head + lane) * 0 + 0x7FFFFFFF
    most = -1 - least
    for step in range(STEPS):
        i = (part * STEPS + step) * BLOCK + head
        inside = i < each
        at, _, _, group = place(
            start + i, lane, row, index_step, granule_step, sizes, x_steps, result_steps,
            index_steps, granule_steps, AXES, UNIT,
        )  # fmt: skip
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if FOLDED:
            v = v * tl.load(factor + group, mask=inside, other=0.0)
        key = ordered(v)
        least = tl.minimum(least, tl.where(inside, key, 0x7FFFFFFF))
        most = tl.maximum(most, tl.where(inside, key, -0x80000000))
    slot = ends + 2 * granule * parts + part
    tl.store(slot, tl.min(least))
    tl.store(slot + parts, tl.max(most))
    if RUNNING:
        if part == 0:
            tl.store(kept, tl.load(running_low))
            tl.store(kept + 1, tl.load(running_high))
            tl.store(kept + 2, tl.load(running_share))


@triton.jit
def gathered(ends, parts, SIZE: tl.constexpr):
    """A granule's extremes, of all parts."""
    i = tl.arange(0, SIZE)
    least = tl.min(tl.load(ends + i, mask=i < parts, other=0x7FFFFFFF), 0)
    most = tl.max(tl.load(ends + parts + i, mask=i < parts, other=-0x80000000), 0)
    return least, most
