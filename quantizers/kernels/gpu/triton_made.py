"""From numbers, and what they are divided by, to elements, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import floating, integer, is_finite, noise
from .triton_uniform import integers, is_usual


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
def made_by_one(
    source, own, zero, index, key, c0, c1, c2, c3, c4, INTEGER: tl.constexpr, SIGNED: tl.constexpr,
    ZERO: tl.constexpr, INF: tl.constexpr, RANDOM: tl.constexpr, MODE: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """`made`, of one scale and zero point, scalars or (1,); integers' elements are int32.

    SHORT: see triton_uniform.integers.
    """
    if INTEGER and (MODE == "nearest_even" or MODE == "stochastic"):
        nil = tl.zeros((1,), tl.float32)
        by, shift = nil + own, nil + zero
        inverse = tl.div_rn(nil + 1.0, by)
        if is_usual(by, shift):
            v = integers(source, by, inverse, shift, index, key, c0, c1, RANDOM, MODE, SHORT)
        else:
            v = made(
                source, by, shift, index, key, c0, c1, c2, c3, c4, True, INTEGER, SIGNED, ZERO,
                INF, RANDOM, MODE,
            ).to(tl.int32)  # fmt: skip
    else:
        v = made(
            source, own, zero, index, key, c0, c1, c2, c3, c4, True, INTEGER, SIGNED, ZERO, INF,
            RANDOM, MODE,
        )  # fmt: skip
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
