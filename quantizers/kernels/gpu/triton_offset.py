"""The Triton kernel of a quantizer with a real offset: see RealOffset."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import larger, noise, number, place
from .triton_range import gathered


@triton.jit
def _rounded(y, bits, RANDOM: tl.constexpr):
    """y >= 0 in fp64, below 2^31, to the nearest integer, or stochastically; NaN stays."""
    if RANDOM > 0:
        whole = y.to(tl.int32).to(tl.float64)
        draw = (bits >> (32 - RANDOM)).to(tl.int32).to(tl.float64)
        up = draw + 0.5 < (y - whole) * (1 << RANDOM)
        found = tl.where(up, whole + 1.0, whole)
    else:
        found = (y + 4503599627370496.0) - 4503599627370496.0
    return tl.where(y == y, found, y)


@triton.jit(do_not_specialize=["granule_step", "index_step", "parts"])
def offset(
    x,
    result,
    key,
    ends,
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
    levels,
    AXES: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    RANDOM: tl.constexpr,
    SIZE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """low + step * clamp(round((x - low) / step), 0, levels), step = (high - low) / levels, in
    fp64, rounded to fp32, of each granule's extremes: see triton_elements.elements."""
    program, alone = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    least, most = gathered(ends + 2 * program * parts, parts, SIZE)
    least, most = number(least), number(most)
    if SYMMETRIC:
        most = larger(tl.abs(least), tl.abs(most))
        least = most * -1.0
    for step in range(STEPS):
        i = (alone * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = i < each
        at, to, index, _ = place(
            program * each + i, 0, row, index_step, granule_step, sizes, x_steps, result_steps,
            index_steps, granule_steps, AXES, 1,
        )  # fmt: skip
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        # wide only of what a warp has not in common: see triton_levels
        low = tl.where(inside, least, 0.0).to(tl.float64)
        high = tl.where(inside, most, 0.0).to(tl.float64)
        far = tl.where(inside, levels, 1.0).to(tl.float64)
        apart = (high - low) / far
        bits = tl.zeros((BLOCK,), tl.uint32)
        if RANDOM > 0:
            bits = noise(index, tl.load(key))
        y = _rounded((v - low) / tl.where(apart == 0.0, float("inf"), apart), bits, RANDOM)
        y = tl.where(y > far, far, y)
        tl.store(result + to, (low + apart * y).to(tl.float32), mask=inside)
