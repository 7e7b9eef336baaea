"""Triton kernels of what elements stand for, and of noise keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def values(
    x,
    result,
    zero_point,
    scale,
    size,
    AFFINE: tl.constexpr,
    SCALED: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(x - zero_point) * scale in fp32, of integers or fp32 numbers; LIMITED: see QTensor."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    v = tl.load(x + i, mask=inside, other=0).to(tl.float32)
    if AFFINE:
        v = v - tl.load(zero_point).to(tl.float32)
    if SCALED:
        own = tl.load(scale)
        element = tl.abs(v)
        v = v * own
        if LIMITED:
            most = tl.where(tl.abs(own) < float("inf"), 3.4028234663852886e38, float("inf"))
            most = tl.where(element < float("inf"), most, float("inf"))  # what is infinite stays it
            v = tl.where(v > most, most, v)
            v = tl.where(v < -most, -most, v)
    tl.store(result + i, v, mask=inside)


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["value"])
def fold(key, result, value, LOADED: tl.constexpr, ADVANCED: tl.constexpr):
    """noise.fold of one key and one value, or when LOADED of the value there, when ADVANCED first
    made one more."""
    own = value
    if LOADED:
        own = tl.load(value)
        if ADVANCED:
            own += 1
            tl.store(value, own)
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    mixed = _mix64(own.to(tl.uint64) + golden) ^ tl.load(key).to(tl.uint64)
    tl.store(result, _mix64(mixed + golden).to(tl.int64))
