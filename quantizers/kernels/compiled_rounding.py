"""Noise, rounding and elements, one number at a time, for kernels to call.

The arithmetic is that of `quantizers.noise`, `rounding` and `steps`, operation by operation in
fp32, so that the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import as_float, f32, float_bits, function, i32, u32


@function
def _mix(x: Any) -> Any:
    x = u32(u32(x ^ (x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ (x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ (x >> u32(16)))


@function
def noise(index: Any, low: Any, high: Any) -> Any:
    """noise.random_bits of an element below 2^31."""
    return _mix(u32(_mix(u32(index + low)) ^ high))


@function
def _signed(magnitude: Any, x: Any) -> Any:
    return as_float(float_bits(magnitude) | (float_bits(x) & u32(0x80000000)))


@function
def _rounded(mode: Any, x: Any, bits: Any, shift: Any, top: Any) -> Any:
    """x rounded to an integer, in fp32; bits: random, of which 32 - shift are used, top of them."""
    if mode == 0:
        return f32(np.rint(x))
    if mode == 1:
        return f32(np.trunc(x))
    if mode == 2:
        return f32(np.floor(x))
    if mode == 3:
        return f32(np.ceil(x))
    magnitude = f32(abs(x))
    whole = f32(np.floor(magnitude))
    fraction = f32(magnitude - whole)
    if mode == 4:
        up = fraction >= f32(0.5)
    else:
        up = f32(f32(i32(bits >> shift)) + f32(0.5)) < f32(fraction * top)
    return _signed(f32(whole + (f32(1.0) if up else f32(0.0))), x)


@function
def _integer(mode: Any, x: Any, zero: Any, bits: Any, shift: Any, top: Any, constants: Any) -> Any:
    """x / scale -> element; constants: lowest, highest."""
    y = f32(_rounded(mode, x, bits, shift, top) + zero)
    y = constants[0] if y < constants[0] else y
    y = constants[1] if y > constants[1] else y
    return y if y == y else f32(0.0)


@function
def _power(exponent: Any) -> Any:
    return as_float(u32(i32(exponent + i32(127)) << i32(23)))


@function
def _exponent(x: Any) -> Any:
    """The exponent field, -127 where it is 0."""
    return i32(i32((float_bits(x) >> u32(23)) & u32(0xFF)) - i32(127))


@function
def _float(mode: Any, x: Any, source: Any, bits: Any, shift: Any, top: Any, constants: Any) -> Any:
    """x = source / scale -> the value of a format that `rounding.round_to_float` gives."""
    mantissa, lowest, largest, over, signed, has_zero, smallest, has_inf = constants
    infinity, nan = f32(np.inf), f32(np.nan)
    unsigned = signed == f32(0.0)
    if unsigned:
        x = f32(0.0) if x <= f32(0.0) else x
    exponent = _exponent(x)
    if lowest < f32(-126.0):  # else a subnormal's own exponent says nothing
        if exponent == i32(-127):  # 2^24 times as large it is none
            exponent = i32(_exponent(f32(x * f32(2.0**24))) - i32(24))
    exponent = i32(max(i32(lowest), min(exponent, i32(127))) - i32(mantissa))
    half = i32(exponent >> i32(1))
    rest = i32(exponent - half)
    y = f32(f32(x * _power(i32(-half))) * _power(i32(-rest)))
    if lowest > mantissa:  # steps above 1
        if (y == f32(0.0)) & (x != f32(0.0)):  # far below one, yet above 0
            y = _signed(f32(2.0**-30), x)
    y = f32(f32(_rounded(mode, y, bits, shift, top) * _power(half)) * _power(rest))
    magnitude, size = f32(abs(y)), f32(abs(source))
    finite = size < infinity
    y = _signed(over, y) if finite & (magnitude > largest) else y
    y = _signed(smallest, y) if finite & (has_zero == f32(0.0)) & (magnitude < smallest) else y
    if unsigned:
        y = nan if source == -infinity else y
    return nan if (has_inf == f32(0.0)) & (size == infinity) else y


@function
def element(
    target: Any, mode: Any, x: Any, source: Any, zero: Any, bits: Any, shift: Any, top: Any,
    constants: Any,
) -> Any:  # fmt: skip
    """x = source / scale -> element; source: what tells a finite x from one beyond fp32."""
    if target == 0:
        return _float(mode, x, source, bits, shift, top, constants)
    return f32(_integer(mode, x, zero, bits, shift, top, constants))
