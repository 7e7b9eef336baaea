"""From numbers, and what they are divided by, to elements, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import floating, integer, is_finite, noise


@triton.jit
def made(
    source, own, zero, index, key, c0, c1, c2, c3, c4, SCALED: tl.constexpr, INTEGER: tl.constexpr,
    SIGNED: tl.constexpr, ZERO: tl.constexpr, INF: tl.constexpr, RANDOM: tl.constexpr,
    MODE: tl.constexpr,
):  # fmt: skip
    """Elements, fp32, of numbers before their scale."""
    v = source
    if SCALED:
        v = tl.div_rn(v, tl.where(own == 0.0, float("inf"), own))
    bits = tl.zeros(v.shape, tl.uint32)
    if RANDOM > 0:
        bits = noise(index, tl.load(key))
    if INTEGER:
        v = integer(v, zero, bits, c0, c1, RANDOM, MODE)
    else:
        v = floating(v, source, bits, c0, c1, c2, c3, c4, SIGNED, ZERO, INF, RANDOM, MODE)
    return v


@triton.jit
def before(v, by, prescale, PRESCALED: tl.constexpr, RECIPROCAL: tl.constexpr):
    """x -> what `made` takes, and divides it by, of what x is divided by, or if RECIPROCAL
    multiplied with: see levels.elements_by."""
    if PRESCALED or RECIPROCAL:
        y = v
        if PRESCALED:
            y = y * prescale
        if RECIPROCAL:
            y = y * by
            by = tl.where(by == 0.0, by, 1.0)
        # what passes fp32 is no infinity
        near = tl.where(tl.abs(y) == float("inf"), 3.4028234663852886e38, tl.abs(y))
        near = tl.where(y < 0.0, -near, tl.where(y == 0.0, y, near))
        v = tl.where(is_finite(v), near, y)
    return v, by
