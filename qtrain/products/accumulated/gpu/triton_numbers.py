"""Rounding of sums within Triton kernels, in fp32 or fp64.

What `quantizers.accumulators` and `rounding` give, bit for bit.  The numbers of a dtype's own: x in
steps of a format is rounded by adding and taking off a number whose last place is that step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _bits(x):
    return x.to(tl.int64 if x.dtype == tl.float64 else tl.int32, bitcast=True)


@triton.jit
def signed(size, x):
    """A magnitude with the sign of x."""
    sign: tl.constexpr = -(2**63) if x.dtype == tl.float64 else -(2**31)
    return (_bits(size) | (_bits(x) & sign)).to(x.dtype, bitcast=True)


@triton.jit
def power(x):
    """The power of two at or below |x|; 0 of subnormal numbers, infinite where x is not finite."""
    exponent: tl.constexpr = 0x7FF0000000000000 if x.dtype == tl.float64 else 0x7F800000
    return (_bits(x) & exponent).to(x.dtype, bitcast=True)


@triton.jit
def ratio(x, y):
    """x / y of two powers of two, whose ratio is a normal number."""
    one: tl.constexpr = 0x3FF0000000000000 if x.dtype == tl.float64 else 0x3F800000
    return (_bits(x) - _bits(y) + one).to(x.dtype, bitcast=True)


@triton.jit
def odd_sum(a, b):
    """a + b, rounded to odd: `accumulators.exactness.odd_sum`."""
    total = a + b
    other = total - a
    error = (a - (total - other)) + (b - other)
    last: tl.constexpr = 63 if a.dtype == tl.float64 else 31
    bits = _bits(total)
    # of the next towards 0 where the error has the other sign, the last bit set
    odd = (bits + ((_bits(error) ^ bits) >> last)) | 1
    return tl.where(tl.abs(error) > 0.0, odd, bits).to(a.dtype, bitcast=True)


@triton.jit
def truncated(x):
    """x, below 2^22 or in fp64 2^51, without its fraction."""
    large: tl.constexpr = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    size = tl.abs(x)
    near = (size + large) - large
    return signed(tl.where(near > size, near - 1.0, near), x)


@triton.jit
def rounded(x, draw, share, format, MODE: tl.constexpr):
    """x to a format: (smallest normal number, step of 1, largest, what overflows, what is added to
    infinity), in fp32.

    MODE: a rounding's; draw: u + 1/2 of a stochastic one, share: 2^bits of them.
    """
    ulps: tl.constexpr = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    size = tl.abs(x)
    own = tl.maximum(power(x), format[0])
    large = own * (format[1] * ulps)
    y = (size + large) - large
    if MODE != "nearest_even":
        step = own * format[1]
        y = tl.where(y > size, y - step, y)
        rest = size - y
        if MODE == "floor":
            y = tl.where((x < 0.0) & (rest > 0.0), y + step, y)
        elif MODE == "ceil":
            y = tl.where((x > 0.0) & (rest > 0.0), y + step, y)
        elif MODE == "half_away":
            y = tl.where(rest + rest >= step, y + step, y)
        elif MODE == "stochastic":
            y = tl.where(draw * step < rest * share, y + step, y)
    y = tl.where(y > format[2], format[3], y)
    return tl.where(size < float("inf"), signed(y, x), x + format[4])
