"""The Triton kernel of noise keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def folded(key, value):
    """noise.fold of integers of 64 bits."""
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    mixed = _mix64(value.to(tl.uint64) + golden) ^ key.to(tl.uint64)
    return _mix64(mixed + golden).to(tl.int64)


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
    tl.store(result, folded(tl.load(key), own))
