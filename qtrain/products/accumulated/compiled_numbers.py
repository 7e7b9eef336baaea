"""Rounding of sums in fp64, one number at a time, for kernels to call.

The arithmetic is that of `quantizers.accumulators` and `rounding`, so that the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantizers.kernels.compiled import f64, function, i64


@function
def bits_of(x: Any) -> Any:
    return f64(x).view(np.int64)


@function
def number_of(bits: Any) -> Any:
    return i64(bits).view(np.float64)


@function
def odd_sum(a: Any, b: Any) -> Any:
    """a + b, rounded to odd: `accumulators.exactness.odd_sum`."""
    total = f64(a + b)
    other = f64(total - a)
    error = f64(f64(a - f64(total - other)) + f64(b - other))
    bits = bits_of(total)
    # of the next towards 0 where the error has the other sign, the last bit set
    odd = (bits + ((bits_of(error) ^ bits) >> i64(63))) | i64(1)
    return number_of(odd) if abs(error) > 0.0 else total


@function
def rounded(mode: Any, x: Any, draw: Any, share: Any, format: Any) -> Any:
    """x to a format: smallest normal number, step of 1, largest, what overflows and what is added
    to infinity.  draw: u + 1/2 of a stochastic rounding, share: 2^bits of them.

    A number whose last place is a step of x is added to it, which rounds, and taken off.
    """
    size = f64(abs(x))
    power = number_of(bits_of(x) & i64(0x7FF0000000000000))
    power = power if power > format[0] else format[0]
    large = f64(power * f64(format[1] * 2.0**52))
    y = f64(f64(size + large) - large)
    if mode != 0:
        step = f64(power * format[1])
        y = f64(y - step) if y > size else y
        rest = f64(size - y)
        up: Any = False
        if mode == 2:
            up = (x < 0.0) & (rest > 0.0)
        elif mode == 3:
            up = (x > 0.0) & (rest > 0.0)
        elif mode == 4:
            up = f64(rest + rest) >= step
        elif mode == 5:
            up = f64(draw * step) < f64(rest * share)
        y = f64(y + step) if up else y
    y = f64(format[3]) if y > format[2] else y
    return f64(np.copysign(y, x)) if size < np.inf else f64(x + format[4])
