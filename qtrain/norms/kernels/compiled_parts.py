"""What the passes of a batch-norm share: their threads' parts, a channel's numbers, and outputs as
they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantizers.kernels.compiled import (
    as_float,
    f32,
    f32_at,
    float_bits,
    function,
    halved,
    thread,
    threads,
    u16_at,
    u32,
    widened,
)

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
