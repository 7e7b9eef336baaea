"""The epilogue of sums, compiled as the fused quantizers are."""

from __future__ import annotations

from typing import Any

from quantizers.kernels.compiled import (
    f32,
    f32_at,
    f64,
    fl24,
    function,
    i32,
    i32_at,
    i64_at,
    kernel,
    thread,
    threads,
)

#: places of the words: sizes (rows of channels of `inner` adjacent sums each), the rows that share
#: a shift, steps from channel to channel in two scales, then addresses, 0 for scales of 1: of sums,
#: shift (int32), the scales, bias (fp32); behind them four bytes a channel
ROWS, CHANNELS, INNER, EACH, STEP_A, STEP_B, SUMS, SHIFT, A, B, BIAS = range(11)


@function
def _scale(words: Any, c: Any) -> Any:
    """fl24(a * b) of a channel, as scales.times."""
    a = f32_at(words[A])[words[STEP_A] * c] if words[A] != 0 else f32(1.0)
    b = f32_at(words[B])[words[STEP_B] * c] if words[B] != 0 else f32(1.0)
    return fl24(a, b)


@function
def _exact(integer: Any, sums: Any, place: Any, shift: Any) -> Any:
    if integer:
        return f32(i32(i32_at(sums)[place] - shift))
    return f32_at(sums)[place]


def finish(integer: bool) -> Any:
    """fl32(sum - shift) * scale + bias in place of sums: int32, or fp32 without a shift."""

    def body(data: Any) -> None:
        words = i64_at(data)
        rows, channels, inner, each = words[ROWS], words[CHANNELS], words[INNER], words[EACH]
        shifts, bias = i32_at(words[SHIFT]), f32_at(words[BIAS])
        sums, values = words[SUMS], f32_at(words[SUMS])
        # every thread writes the same there
        scales = f32_at(data + 8 * (BIAS + 1))
        held = True
        for c in range(channels):
            wide = _scale(words, c)
            scales[c] = f32(wide)
            held &= (f64(scales[c]) == wide) | (wide != wide)
        if (inner == 1) & held:
            for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
                place, shared = row * channels, row // each * channels
                for c in range(channels):
                    exact = _exact(integer, sums, place + c, shifts[shared + c])
                    values[place + c] = f32(exact * scales[c]) + bias[c]
        else:
            planes = rows * channels
            first, last = planes * thread() // threads(), planes * (thread() + 1) // threads()
            for plane in range(first, last):
                row, c = plane // channels, plane % channels
                shift, scale, wide = shifts[row // each * channels + c], scales[c], f64(1.0)
                if not held:
                    wide = _scale(words, c)
                for place in range(plane * inner, (plane + 1) * inner):
                    exact = _exact(integer, sums, place, shift)
                    y = f32(exact * scale) if held else f32(f64(exact) * wide)
                    values[place] = y + bias[c]

    return kernel(body)
