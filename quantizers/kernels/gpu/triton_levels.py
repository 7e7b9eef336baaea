"""From a block's largest magnitude to its scale, in one level or two, within Triton kernels.

The arithmetic is that of `scales.rules` and `scales.levels`, operation by operation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import as_float, float_bits, floating, is_finite


@triton.jit
def most(x):
    """At most fp32's largest number; NaN stays."""
    return tl.where(x > 3.4028234663852886e38, 3.4028234663852886e38, x)


@triton.jit
def _inverse(x, number):
    """rules.reciprocal: number / x."""
    return most(tl.div_rn(tl.zeros_like(x) + number, x))


@triton.jit
def _quotient(amax, reach):
    """amax / reach, no infinity of what is finite."""
    found = tl.div_rn(amax, tl.zeros_like(amax) + reach)
    beyond = (found == float("inf")) & (amax < float("inf"))
    return tl.where(beyond, 3.4028234663852886e38, found)


@triton.jit
def _power(bound, beyond, ahead, lowest, top, over):
    """rules._power: 2^(e + ahead + (fraction >= beyond)), bound being 1.fraction * 2^e.

    beyond, ahead: see rules._threshold; lowest, top: exponents of the scale's format; over: what
    lies beyond.  In integers of 32 bits: of 64, or in fp64, what a reduction left in a register
    of the whole warp came out wrong on an H200 (ptxas 12.8).
    """
    # 2^24 times as large no subnormal is one
    small = bound < 1.1754943508222875e-38
    bits = float_bits(tl.where(small, bound * 16777216.0, bound)).to(tl.int32)
    exponent = (bits >> 23) - tl.where(small, 151, 127) + ahead
    exponent += ((bits & 0x7FFFFF) >= beyond).to(tl.int32)
    exponent = tl.maximum(exponent, lowest)
    own = tl.minimum(exponent, top)
    normal, subnormal = (own + 127) << 23, 1 << tl.minimum(tl.maximum(own + 149, 0), 22)
    power = as_float(tl.where(own < -126, subnormal, normal).to(tl.uint32))
    found = tl.where(exponent > top, over, power)
    found = tl.where(is_finite(bound), found, float("nan"))
    return tl.where(bound == 0.0, 0.0, found)


@triton.jit
def outer_of(whole, number, RECIPROCAL: tl.constexpr):
    """levels._outer of a tensor, in fp32: the scale of its scales, and its reciprocal if they are
    made by that.  number: what `whole`, the largest magnitude, becomes."""
    if RECIPROCAL:
        factor = tl.where(whole == 0.0, 1.0, _inverse(whole, number))
        outer = _inverse(factor, 1.0)
    else:
        found = _quotient(whole, number)
        found = tl.where(found < 1.1754943508222875e-38, 1.1754943508222875e-38, found)
        outer = tl.where(whole == 0.0, 1.0, found)
        factor = outer
    return outer, factor


@triton.jit
def narrow(
    found, measured, s0, s1, s2, s3, s4, S_SIGNED: tl.constexpr, S_ZERO: tl.constexpr,
    S_INF: tl.constexpr, S_MODE: tl.constexpr,
):  # fmt: skip
    """rules.in_format."""
    bits = tl.zeros(found.shape, tl.uint32)
    rounded = floating(found, found, bits, s0, s1, s2, s3, s4, S_SIGNED, S_ZERO, S_INF, 0, S_MODE)
    return tl.where(measured == 0.0, found, rounded)


@triton.jit
def divisor_of(
    found, bound, outer, reach, LEVELS: tl.constexpr, RECIPROCAL: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """What elements of a scale are divided by, or if RECIPROCAL multiplied with."""
    by = found
    if LEVELS == 2:
        by = found * outer
    if RECIPROCAL:
        if LEVELS == 1 and not NARROW:
            by = tl.where(bound == 0.0, 0.0, _inverse(bound, reach))
        else:
            by = tl.where(by == 0.0, 0.0, _inverse(by, 1.0))
    return by


@triton.jit
def step_of(
    bound, outer, factor, reach, beyond, ahead, lowest, top, s0, s1, s2, s3, s4,
    LEVELS: tl.constexpr, RECIPROCAL: tl.constexpr, POWER: tl.constexpr, NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr, S_ZERO: tl.constexpr, S_INF: tl.constexpr, S_MODE: tl.constexpr,
):  # fmt: skip
    """levels._step: the scale, and what elements are divided by, see divisor_of.

    LEVELS: 2 where there is an outer scale.  POWER: by a rule of powers of two.  NARROW: the scale
    is rounded to a format, s0..: see triton_numbers.floating.
    """
    if POWER:
        found = _power(bound, beyond, ahead, lowest, top, s3)
    elif RECIPROCAL and LEVELS == 2:
        found = bound * (factor * _inverse(tl.zeros_like(factor) + reach, 1.0))
        found = tl.where(bound == float("inf"), found, most(found))
    elif RECIPROCAL and not NARROW:
        inverse = _inverse(bound, reach)
        known = is_finite(bound) & (bound != 0.0)
        found = tl.where(known, _inverse(inverse, 1.0), bound)
    elif LEVELS == 2:
        found = _quotient(tl.div_rn(bound, tl.zeros_like(bound) + outer), reach)
    else:
        found = _quotient(bound, reach)
    if NARROW and not POWER:
        found = narrow(found, bound, s0, s1, s2, s3, s4, S_SIGNED, S_ZERO, S_INF, S_MODE)
    return found, divisor_of(found, bound, outer, reach, LEVELS, RECIPROCAL, NARROW)
