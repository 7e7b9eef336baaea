"""Triton kernels of a quantizer's elements, of keys, and of what elements stand for.

x is walked in the order of its memory: see layout.Walk, whose rows and outer axes the kernels are
given.  A granule's elements share a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import floating, integer, noise, place


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
    at, to, index, granule = place(
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
