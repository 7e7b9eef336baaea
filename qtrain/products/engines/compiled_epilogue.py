"""The epilogue of sums, compiled as the fused quantizers are."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantizers.kernels.compiled import (
    f32,
    f32_at,
    function,
    i32,
    i32_at,
    i64,
    kernel,
    thread,
    threads,
)

f64 = np.float64
#: places of the words: sizes (rows of channels of `inner` adjacent sums each), the rows that share
#: a shift, then addresses, 0 for what is 1: of sums, shift (int32), two scales, bias (fp32);
#: single: whether the scales are one number each
ROWS, CHANNELS, INNER, EACH, SINGLE, SUMS, SHIFT, A, B, BIAS = range(10)


@function
def _scale(words: Any) -> Any:
    """fl24(a * b) of two single numbers, as scales.times."""
    a = f32_at(words[A])[0] if words[A] != 0 else f32(1.0)
    b = f32_at(words[B])[0] if words[B] != 0 else f32(1.0)
    exact = f64(f64(a) * f64(b))
    bits = exact.view(np.int64)
    rounded = i64(i64(bits + i64(0xFFFFFFF) + ((bits >> i64(29)) & i64(1))) & i64(~0x1FFFFFFF))
    return rounded.view(np.float64) if abs(exact) < f64(np.inf) else exact


@function
def _exact(integer: Any, sums: Any, place: Any, shift: Any) -> Any:
    if integer:
        return f32(i32(i32_at(sums)[place] - shift))
    return f32_at(sums)[place]


def finish(integer: bool) -> Any:
    """fl32(sum - shift) * scale + bias in place of sums: int32, or fp32 without a shift."""

    def body(data: Any) -> None:
        words = numba.carray(data, (BIAS + 1,), np.int64)
        rows, channels, inner, each = words[ROWS], words[CHANNELS], words[INNER], words[EACH]
        shifts, bias = i32_at(words[SHIFT]), f32_at(words[BIAS])
        sums, scales = words[SUMS], f32_at(words[A])
        values = f32_at(sums)
        single = words[SINGLE] != 0
        wide = _scale(words) if single else f64(1.0)
        scale = f32(wide)
        held = (f64(scale) == wide) | (wide != wide)
        if (inner == 1) & held:
            for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
                place, shared = row * channels, row // each * channels
                if single:
                    for c in range(channels):
                        exact = _exact(integer, sums, place + c, shifts[shared + c])
                        values[place + c] = f32(exact * scale) + bias[c]
                else:
                    for c in range(channels):
                        exact = _exact(integer, sums, place + c, shifts[shared + c])
                        values[place + c] = f32(exact * scales[c]) + bias[c]
        else:
            planes = rows * channels
            first, last = planes * thread() // threads(), planes * (thread() + 1) // threads()
            for plane in range(first, last):
                row, c = plane // channels, plane % channels
                shift, own = shifts[row // each * channels + c], scale if single else scales[c]
                for place in range(plane * inner, (plane + 1) * inner):
                    exact = _exact(integer, sums, place, shift)
                    y = f32(exact * own) if held else f32(f64(exact) * wide)
                    values[place] = f32(y + bias[c])

    return kernel(body)
