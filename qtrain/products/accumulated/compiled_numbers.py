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
    step = i64(1) if (error > 0.0) == (total > 0.0) else i64(-1)
    inexact = (error != 0.0) & (abs(total) < np.inf) & ((bits & i64(1)) == i64(0))
    return number_of(bits + step) if inexact else total


@function
def _whole(mode: Any, x: Any, draw: Any, share: Any) -> Any:
    """x rounded to an integer; draw: u + 1/2 of a stochastic rounding, share: 2^bits of them."""
    if mode == 0:
        return f64(np.rint(x))
    if mode == 1:
        return f64(np.trunc(x))
    if mode == 2:
        return f64(np.floor(x))
    if mode == 3:
        return f64(np.ceil(x))
    size = f64(abs(x))
    whole = f64(np.floor(size))
    rest = f64(size - whole)
    up = rest >= 0.5 if mode == 4 else draw < f64(rest * share)
    return f64(np.copysign(whole + (1.0 if up else 0.0), x))


@function
def rounded(mode: Any, x: Any, draw: Any, share: Any, format: Any) -> Any:
    """x to a format: mantissa, smallest exponent, largest, and what overflows and infinity are."""
    exponent = max(i64((bits_of(x) >> i64(52)) & i64(0x7FF)), i64(format[1]) + i64(1023))
    shift = i64(exponent - i64(format[0]))  # that of a step
    y = _whole(mode, f64(x * number_of((i64(2046) - shift) << i64(52))), draw, share)
    y = f64(y * number_of(shift << i64(52)))
    y = f64(np.copysign(format[3], x)) if abs(y) > format[2] else y
    y = f64(x + format[4]) if abs(x) == np.inf else y
    return y if x == x else x
