"""Products of scales, and with them, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fl24(a, b):
    """a * b of fp32 numbers with 24 significant bits, in fp64: see scales.times."""
    bits = (a.to(tl.float64) * b.to(tl.float64)).to(tl.int64, bitcast=True)
    bits = (bits + 0xFFFFFFF + ((bits >> 29) & 1)) & -0x20000000
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def is_held(scale):
    """1 where fp32 holds the scale, else 0."""
    return (scale.to(tl.float32).to(tl.float64) == scale.to(tl.float64)).to(tl.int32)


@triton.jit
def scaled(x, scale, held):
    """fl32(x * scale), of fp32 numbers and a scale in fp32 or fp64; held: 1 where fp32 holds every
    scale of the program, as it does nearly always: units for fp64 are few; else 0, or unknown."""
    narrow = scale.to(tl.float32)
    if scale.dtype == tl.float64:
        if held == 1:
            x = x * narrow
        else:
            x = (x.to(tl.float64) * scale).to(tl.float32)
    else:
        x = x * narrow
    return x


@triton.jit
def times(a, b, result, size, A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr):
    """scales.times: fl24(a * b) in fp64; A, B: whether that factor is one number."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    left = tl.load(a + i * (1 - A), mask=inside, other=0.0)
    right = tl.load(b + i * (1 - B), mask=inside, other=0.0)
    tl.store(result + i, fl24(left, right), mask=inside)
