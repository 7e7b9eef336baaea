"""Integers of numbers that one scale divides, within Triton kernels: what depends on the scale
alone is computed once, and no element is divided.

The bits are those of `triton_numbers.integer` of x / scale; see `quotient` and `integers`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import INTERPRETED
from .triton_numbers import integer, noise

#: numpy, which the interpreter computes by, rounds a product before it adds to it
_FUSED = tl.constexpr(not INTERPRETED)


@triton.jit
def is_usual(by, zero):
    """Whether `integers` serves a scale and a zero point, (1,) -> a scalar.

    Its quotients then are a division's, or so small that they round to 0, or so large that they
    are clamped.
    """
    usual = (by >= 2.0**-70) & (by <= 2.0**100) & (tl.abs(zero) <= 65536.0)
    return tl.max(usual.to(tl.int32), 0) > 0


@triton.jit
def quotient(x, by, inverse):
    """x / by, rounded to nearest; inverse: 1 / by, rounded to nearest.

    Of |x| from 2^-100 on and quotients within fp32's normal numbers; below, it is about as small,
    of an infinity NaN, and of -0 0.  Brisebarre, Muller and Raina, "Accelerating
    correctly rounded floating-point division when the divisor is known in advance" (2004): the
    first quotient errs by less than 1.5 units of its last place, and its remainder corrects it.
    """
    if not _FUSED:
        return tl.div_rn(x, by)
    near = x * inverse
    return tl.fma(tl.fma(near, -by, x), inverse, near)


@triton.jit
def integers(
    x, by, inverse, zero, index, key, low, high, RANDOM: tl.constexpr, MODE: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """x -> elements of an integer format, int32, as `integer` of x / by.

    low, high: of the format, of 16 bits at most; SHORT: within -128 .. 127, and zero is 0.
    MODE: "nearest_even" or "stochastic".
    """
    if MODE == "nearest_even":
        # x beyond what gives the outermost elements gives them, and so does a quarter step beyond
        least, most = (low - zero - 0.25) * by, (high - zero + 0.25) * by
        y = quotient(tl.minimum(tl.maximum(x, least), most), by, inverse)
        # from 2^23 to 2^24 a float's last bits are an integer
        y = (y + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000 + zero.to(tl.int32)
    elif SHORT:
        # the element's size is the ceiling of |x| / by less noise, draw / 2^RANDOM: in units of
        # 2^-RANDOM |x| / by is above draw + 1/2 where it is above draw, rounded with halves down
        UNIT: tl.constexpr = 2 << RANDOM
        most = tl.where(x < 0.0, low * -UNIT, high * UNIT)
        # an infinity's quotient is NaN, which is no minimum
        twice = tl.minimum(quotient(tl.abs(x), by * (1.0 / UNIT), inverse * UNIT), most)
        draw = noise(index, tl.load(key)) >> (32 - RANDOM)
        y = (draw - (tl.ceil(twice).to(tl.uint32) >> 1)).to(tl.int32) >> RANDOM
        y = tl.where(x < 0.0, y, -y)
    else:
        far = 262144.0 * by
        y = quotient(tl.minimum(tl.maximum(x, -far), far), by, inverse)
        y = integer(y, zero, noise(index, tl.load(key)), low, high, RANDOM, MODE).to(tl.int32)
    return tl.where(x == x, y, 0)
