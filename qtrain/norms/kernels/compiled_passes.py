"""The passes of a batch-norm over its elements, compiled as the fused quantizers are.

x is read in runs of `width` adjacent elements.  A run of a channels-last tensor is a row, with one
element of every channel; with `planes`, of a contiguous one, it is a plane, of one channel, and the
next run is the next channel's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    TARGET_BYTES,
    as_float,
    f32,
    f32_at,
    float_bits,
    function,
    halved,
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
from quantizers.kernels.compiled_rounding import element

#: kernels are made, and cached on disk, for numbers into these
TARGETS = ("float32", "float16", "bfloat16", "float32 of float16", "float32 of bfloat16")
#: what the output is rounded to before the ReLU
ROUNDINGS = ("float32", "float16", "bfloat16")
#: by a target's number
OUTPUT_BYTES = (4, 2, 2, 4, 4)


@function
def _brain(x: Any) -> Any:
    """float32 -> the bits of the nearest bf16 number, ties to even (in the low half)."""
    bits = float_bits(x)
    rounded = u32(u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16))
    return rounded if x == x else u32(0x7FC0)


@function
def rounded(rounding: Any, x: Any) -> Any:
    """x rounded to ROUNDINGS[rounding]."""
    if rounding == 1:
        return widened(halved(x))
    if rounding == 2:
        return as_float(u32(_brain(x) << u32(16)))
    return x


@function
def keep(target: Any, address: Any, i: Any, value: Any) -> None:
    if target == 1:
        u16_at(address)[i] = halved(value)
    elif target == 2:
        u16_at(address)[i] = np.uint16(_brain(value))
    else:
        f32_at(address)[i] = rounded(target - 2 if target > 2 else 0, value)


@function
def share(count: Any) -> Any:
    """The first of this thread's part of `count` things, and the end."""
    return count * thread() // threads(), count * (thread() + 1) // threads()


@function
def channel(mean: Any, scale: Any, shift: Any, c: Any) -> Any:
    """Mean, scale and shift of a channel."""
    return f32_at(mean)[c], f32_at(scale)[c], f32_at(shift)[c]


@function
def sign(x: Any) -> Any:
    positive = f32(1.0) if x > f32(0.0) else f32(0.0)
    return f32(-1.0) if x < f32(0.0) else positive


@function
def before_relu(rounding: Any, grad: Any, centered: Any, scale: Any, shift: Any) -> Any:
    """The gradient before the ReLU of centered * scale + shift, rounded."""
    y = rounded(rounding, f32(f32(centered * scale) + shift))
    return f32(0.0) if y <= f32(0.0) else grad


def normalize(
    source: int, target: int, relu: bool, planes: bool, quantized: bool, rounding: int
) -> Any:
    """(x - mean) * scale + shift, then ReLU, stored as TARGETS[target].

    quantized: rounded, before the ReLU, then quantized to the nearest element of the integer dtype
    TARGETS[target] of the quantizers' kernels, one range for all.
    """
    size = SOURCE_BYTES[source]
    target_size = TARGET_BYTES[target] if quantized else OUTPUT_BYTES[target]

    def body(data: Any) -> None:
        words = i64_at(data)
        runs, width, channels = words[0], words[1], words[2]
        mean, scale, shift = words[5], words[6], words[7]
        if quantized:
            zero = f32(0.0)
            step, bounds = f32_at(words[8])[0], f32_at(words[10])
            step = f32(np.inf) if step == f32(0.0) else step
            if words[9] != 0:
                zero = f32(i32_at(words[9])[0])
            constants = (bounds[0], bounds[1], f32(0), f32(0), f32(0), f32(0), f32(0), f32(0))
        start, end = share(runs)
        for run in range(start, end):
            x, y = words[3] + size * width * run, words[4] + target_size * width * run
            m, s, b = channel(mean, scale, shift, run % channels)
            for i in range(width):
                if not planes:
                    m, s, b = channel(mean, scale, shift, i)
                v = rounded(rounding, f32(f32(f32(load(source, x, i) - m) * s) + b))
                if relu:
                    v = f32(0.0) if v < f32(0.0) else v
                if quantized:
                    v = f32(v / step)
                    v = element(target, 0, v, v, zero, u32(0), u32(0), f32(0), constants)
                    store(target, y, i, v)
                else:
                    keep(target, y, i, v)

    return kernel(body)


def backward_input(
    source: int, grad_source: int, target: int, slope: bool, signs: bool, relu: bool,
    rounding: int, planes: bool,
) -> Any:  # fmt: skip
    """g * scale + slope * centered + offset, stored as TARGETS[target]; signs: slope multiplies
    sign(centered) instead."""
    size, grad_size = SOURCE_BYTES[source], SOURCE_BYTES[grad_source]
    target_size = OUTPUT_BYTES[target]

    def body(data: Any) -> None:
        words = i64_at(data)
        runs, width, channels = words[0], words[1], words[2]
        mean, scale, shift, factor, offset = words[6], words[7], words[8], words[9], words[10]
        start, end = share(runs)
        for run in range(start, end):
            x, g = words[3] + size * width * run, words[4] + grad_size * width * run
            y = words[5] + target_size * width * run
            c = run % channels
            m, s, b = channel(mean, scale, shift, c)
            k, o = f32_at(factor)[c], f32_at(offset)[c]
            for i in range(width):
                if not planes:
                    m, s, b = channel(mean, scale, shift, i)
                    k, o = f32_at(factor)[i], f32_at(offset)[i]
                v = f32(load(source, x, i) - m)
                w = load(grad_source, g, i)
                if relu:
                    w = before_relu(rounding, w, v, s, b)
                w = f32(f32(w * s) + o)
                if signs:
                    v = sign(v)
                if slope:
                    w = f32(w + f32(v * k))
                keep(target, y, i, w)

    return kernel(body)


def residual(source: int, masked: bool) -> Any:
    """relu(x + y) of tensors of SOURCES[source] with the same layout, and, a byte each, where it
    was off; masked: x, a gradient, but 0 where the ReLU was off."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = i64_at(data)
        start, end = share(words[0])
        x, y, result = words[1] + size * start, words[2] + size * start, words[3] + size * start
        off = u8_at(words[4] + start)
        for i in range(end - start):
            v = load(source, x, i)
            if masked:
                below = off[i] != 0
            else:
                v = rounded(source, f32(v + load(source, y, i)))
                below = v <= f32(0.0)
                off[i] = np.uint8(1) if below else np.uint8(0)
            keep(source, result, i, f32(0.0) if below else v)

    return kernel(body)
