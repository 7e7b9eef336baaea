"""The passes of a batch-norm over a channels-last tensor, compiled as the fused quantizers are.

x is read as rows of `channels` adjacent elements; a row's number is the index of its elements in
each channel.  Sums are taken in fp32 within blocks of rows, whose partial results the caller adds,
so that they depend on the shape alone and not on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    TARGET_BYTES,
    as_float,
    element,
    f32,
    f32_at,
    float_bits,
    function,
    halved,
    i32,
    i32_at,
    i64_at,
    kernel,
    load,
    store,
    thread,
    threads,
    u8_at,
    u16_at,
    u32,
    widened,
)

#: kernels are made, and cached on disk, for numbers into these
TARGETS = ("float32", "float16", "bfloat16", "float32 of float16", "float32 of bfloat16")
#: what the output is rounded to before the ReLU
ROUNDINGS = ("float32", "float16", "bfloat16")
STATISTICS = ("squares", "magnitudes", "largest", "extremes")
_OUTPUT_BYTES = (4, 2, 2, 4, 4)


@function
def _brain(x: Any) -> Any:
    """float32 -> the bits of the nearest bf16 number, ties to even (in the low half)."""
    bits = float_bits(x)
    rounded = u32(u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16))
    return rounded if x == x else u32(0x7FC0)


@function
def _keep(target: Any, address: Any, i: Any, value: Any) -> None:
    if target == 0:
        f32_at(address)[i] = value
    elif target == 1:
        u16_at(address)[i] = halved(value)
    elif target == 2:
        u16_at(address)[i] = np.uint16(_brain(value))
    elif target == 3:
        f32_at(address)[i] = widened(halved(value))
    else:
        f32_at(address)[i] = as_float(u32(_brain(value) << u32(16)))


def statistics(source: int, kind: int) -> Any:
    """Per block of rows and channel, by STATISTICS[kind]: the sum of (x - mean)^2 or |x - mean|;
    the largest |x - mean| with its row; the largest and smallest x with their rows."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (10,), np.int64)
        channels, x_base, starts, blocks = words[0], words[1], words[2], words[3]
        mean = words[9]
        for block in range(blocks * thread() // threads(), blocks * (thread() + 1) // threads()):
            first, last = i64_at(starts)[block], i64_at(starts)[block + 1]
            place = 4 * channels * block
            total, high, high_at = words[4] + place, words[5] + place, words[6] + place
            low, low_at = words[7] + place, words[8] + place
            for c in range(channels):
                if kind <= 1:
                    f32_at(total)[c] = f32(0.0)
                else:
                    f32_at(high)[c] = f32(-np.inf)
                    i32_at(high_at)[c] = i32(first)
                if kind == 3:
                    f32_at(low)[c] = f32(np.inf)
                    i32_at(low_at)[c] = i32(first)
            for row in range(first, last):
                x, at = x_base + size * channels * row, i32(row)
                if kind <= 1:
                    for c in range(channels):
                        v = f32(load(source, x, c) - f32_at(mean)[c])
                        f32_at(total)[c] += f32(v * v) if kind == 0 else f32(abs(v))
                else:
                    for c in range(channels):
                        v, best = load(source, x, c), f32_at(high)[c]
                        if kind == 2:
                            v = f32(abs(f32(v - f32_at(mean)[c])))
                        i32_at(high_at)[c] = at if v > best else i32_at(high_at)[c]
                        f32_at(high)[c] = v if v > best else best
                if kind == 3:
                    for c in range(channels):
                        v, best = load(source, x, c), f32_at(low)[c]
                        i32_at(low_at)[c] = at if v < best else i32_at(low_at)[c]
                        f32_at(low)[c] = v if v < best else best

    return kernel(body)


def normalize(source: int, target: int, relu: bool) -> Any:
    """(x - mean) * scale + shift, then ReLU, stored as TARGETS[target]."""
    size, target_size = SOURCE_BYTES[source], _OUTPUT_BYTES[target]

    def body(data: Any) -> None:
        words = numba.carray(data, (7,), np.int64)
        rows, channels = words[0], words[1]
        mean, scale, shift = words[4], words[5], words[6]
        for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
            x, y = words[2] + size * channels * row, words[3] + target_size * channels * row
            for c in range(channels):
                v = f32(f32(load(source, x, c) - f32_at(mean)[c]) * f32_at(scale)[c])
                v = f32(v + f32_at(shift)[c])
                if relu:
                    v = f32(0.0) if v < f32(0.0) else v
                _keep(target, y, c, v)

    return kernel(body)


@function
def _rounded(rounding: Any, x: Any) -> Any:
    """x rounded to ROUNDINGS[rounding]."""
    if rounding == 1:
        return widened(halved(x))
    if rounding == 2:
        return as_float(u32(_brain(x) << u32(16)))
    return x


def codes(source: int, target: int, relu: bool, rounding: int) -> Any:
    """(x - mean) * scale + shift, rounded, then ReLU, then quantized to the nearest element of
    the integer dtype TARGETS[target] of the quantizers' kernels, one range for all."""
    size, target_size = SOURCE_BYTES[source], TARGET_BYTES[target]

    def body(data: Any) -> None:
        words = numba.carray(data, (10,), np.int64)
        rows, channels = words[0], words[1]
        mean, scale, shift = words[4], words[5], words[6]
        step = f32_at(words[7])[0]
        step = f32(np.inf) if step == f32(0.0) else step
        zero = f32(0.0)
        if words[8] != 0:
            zero = f32(i32_at(words[8])[0])
        bounds = f32_at(words[9])
        constants = (bounds[0], bounds[1], f32(0), f32(0), f32(0), f32(0), f32(0), f32(0))
        for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
            x, y = words[2] + size * channels * row, words[3] + target_size * channels * row
            for c in range(channels):
                v = f32(f32(load(source, x, c) - f32_at(mean)[c]) * f32_at(scale)[c])
                v = _rounded(rounding, f32(v + f32_at(shift)[c]))
                if relu:
                    v = f32(0.0) if v < f32(0.0) else v
                v = f32(v / step)
                v = element(target, 0, v, zero, u32(0), u32(0), f32(0), constants)
                store(target, y, c, v)

    return kernel(body)


@function
def _masked(rounding: Any, grad: Any, centered: Any, scale: Any, shift: Any) -> Any:
    """The gradient before the ReLU of centered * scale + shift, rounded."""
    y = _rounded(rounding, f32(f32(centered * scale) + shift))
    return f32(0.0) if y <= f32(0.0) else grad


def backward_sums(
    source: int, grad_source: int, squares: bool, signs: bool, relu: bool, rounding: int
) -> Any:
    """Per block of rows and channel: the sums of g, g * centered, and, as asked, centered^2 or
    sign(centered); centered = x - mean, g: grad_output, masked where the ReLU was off."""
    size, grad_size = SOURCE_BYTES[source], SOURCE_BYTES[grad_source]

    def body(data: Any) -> None:
        words = numba.carray(data, (11,), np.int64)
        channels, x_base, starts, blocks = words[0], words[1], words[2], words[3]
        g_base, mean, scale, shift = words[4], words[5], words[6], words[7]
        for block in range(blocks * thread() // threads(), blocks * (thread() + 1) // threads()):
            place = 4 * channels * block
            plain, product, extra = words[8] + place, words[9] + place, words[10] + place
            for c in range(channels):
                f32_at(plain)[c] = f32(0.0)
                f32_at(product)[c] = f32(0.0)
            if squares or signs:
                for c in range(channels):
                    f32_at(extra)[c] = f32(0.0)
            for row in range(i64_at(starts)[block], i64_at(starts)[block + 1]):
                x, g = x_base + size * channels * row, g_base + grad_size * channels * row
                for c in range(channels):
                    v = f32(load(source, x, c) - f32_at(mean)[c])
                    w = load(grad_source, g, c)
                    if relu:
                        w = _masked(rounding, w, v, f32_at(scale)[c], f32_at(shift)[c])
                    f32_at(plain)[c] += w
                    f32_at(product)[c] += f32(w * v)
                if squares:
                    for c in range(channels):
                        v = f32(load(source, x, c) - f32_at(mean)[c])
                        f32_at(extra)[c] += f32(v * v)
                if signs:
                    for c in range(channels):
                        v = f32(load(source, x, c) - f32_at(mean)[c])
                        one = f32(1.0) if v > f32(0.0) else f32(0.0)
                        f32_at(extra)[c] += f32(-1.0) if v < f32(0.0) else one

    return kernel(body)


def backward_input(
    source: int,
    grad_source: int,
    target: int,
    slope: bool,
    signs: bool,
    relu: bool,
    rounding: int,
) -> Any:
    """g * scale + slope * centered + offset, stored as TARGETS[target]; signs: slope multiplies
    sign(centered) instead."""
    size, grad_size, target_size = (
        SOURCE_BYTES[source],
        SOURCE_BYTES[grad_source],
        _OUTPUT_BYTES[target],
    )

    def body(data: Any) -> None:
        words = numba.carray(data, (10,), np.int64)
        rows, channels = words[0], words[1]
        mean, scale, shift, factor, offset = words[5], words[6], words[7], words[8], words[9]
        for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
            x, g = words[2] + size * channels * row, words[3] + grad_size * channels * row
            y = words[4] + target_size * channels * row
            for c in range(channels):
                v = f32(load(source, x, c) - f32_at(mean)[c])
                w = load(grad_source, g, c)
                if relu:
                    w = _masked(rounding, w, v, f32_at(scale)[c], f32_at(shift)[c])
                w = f32(f32(w * f32_at(scale)[c]) + f32_at(offset)[c])
                if signs:
                    one = f32(1.0) if v > f32(0.0) else f32(0.0)
                    v = f32(-1.0) if v < f32(0.0) else one
                if slope:
                    w = f32(w + f32(v * f32_at(factor)[c]))
                _keep(target, y, c, w)

    return kernel(body)


def add_relu(source: int) -> Any:
    """relu(x + y) of tensors of SOURCES[source] with the same layout, and, a byte each, where it
    was off."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (5,), np.int64)
        start, end = words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()
        x, y, result = words[1] + size * start, words[2] + size * start, words[3] + size * start
        off = words[4] + start
        for i in range(end - start):
            v = f32(load(source, x, i) + load(source, y, i))
            v = _rounded(source, v)
            below = v <= f32(0.0)
            _keep(source, result, i, f32(0.0) if below else v)
            u8_at(off)[i] = np.uint8(1) if below else np.uint8(0)

    return kernel(body)


def masked(source: int) -> Any:
    """The gradient, of SOURCES[source], but 0 where the ReLU was off."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (4,), np.int64)
        start, end = words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()
        grad, result, off = words[1] + size * start, words[2] + size * start, words[3] + start
        for i in range(end - start):
            v = load(source, grad, i)
            _keep(source, result, i, f32(0.0) if u8_at(off)[i] != 0 else v)

    return kernel(body)
