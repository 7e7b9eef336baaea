"""A quantizer with its range in one kernel: extremes, scale, zero point, running range, elements.

The arithmetic is that of `ranges` and `steps`, operation by operation in fp32.  A granule is a
run of consecutive elements in the order of the walk; a single one is shared by all threads, several
are dealt out to them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import binding
from numba import types

from .compiled import (
    SOURCE_BYTES,
    as_float,
    f32,
    f32_at,
    float_bits,
    function,
    i32,
    i32_at,
    i64,
    i64_at,
    kernel,
    load,
    thread,
    threads,
    u32,
)
from .compiled_elements import (
    CODES,
    CONSTANTS,
    FACTOR,
    GRANULE_STEP,
    GRANULES,
    HIGH,
    LOW,
    SCALE,
    SHARE,
    SIGNED,
    SIZE,
    STEPS,
    SYMMETRIC,
    UPDATE,
    USE,
    WORDS,
    ZERO_POINT,
    X,
    call,
    row,
)
from .team import openmp

#: places among the constants
_LARGEST, _MOMENTUM = 8, 9
_MOST = np.finfo(np.float32).max

if openmp() is None:

    @function
    def _barrier() -> None:
        pass

else:
    binding.add_symbol("GOMP_barrier", ctypes.cast(openmp().GOMP_barrier, ctypes.c_void_p).value)
    _wait = types.ExternalFunction("GOMP_barrier", types.void())

    @function
    def _barrier() -> None:
        _wait()


@function
def ordered(x: Any) -> Any:
    """float32 -> int32 in the order of the numbers; NaN lies beyond the infinities."""
    bits = i32(float_bits(x))
    return i32(bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF)))


@function
def number(key: Any) -> Any:
    """The inverse of `ordered`."""
    return as_float(u32(i32(key ^ ((key >> i32(31)) & i32(0x7FFFFFFF)))))


@function
def _extremes(source: Any, folded: Any, words: Any, position: Any, end: Any) -> Any:
    """Smallest and largest, ordered, of the elements of the walk from position to end."""
    low, high = i32(0x7FFFFFFF), i32(-0x80000000)
    while position < end:
        length, x, _, _, factor, _ = row(words, position, end)
        x = words[X] + SOURCE_BYTES[source] * x
        if folded and words[GRANULE_STEP] != 0:
            for i in range(length):
                v = ordered(f32(load(source, x, i) * f32_at(words[FACTOR])[factor + i]))
                low, high = min(low, v), max(high, v)
        else:
            one = f32(1.0)
            if folded:
                one = f32_at(words[FACTOR])[factor]
            for i in range(length):
                v = load(source, x, i)
                if folded:
                    v = f32(v * one)
                k = ordered(v)
                low, high = min(low, k), max(high, k)
        position += length
    return low, high


@function
def _is_finite(x: Any) -> Any:
    return f32(abs(x)) < f32(np.inf)


@function
def _larger(a: Any, b: Any) -> Any:
    """The larger, or NaN where one is."""
    larger = a if a > b else b
    return f32(np.nan) if (a != a) | (b != b) else larger


@function
def _moved(old: Any, new: Any, weight: Any) -> Any:
    half = f32(old * f32(0.5))
    part = f32(f32(f32(new * f32(0.5)) - half) * weight)
    return f32(f32(part + half) * f32(2.0))


@function
def _ranged(words: Any, low: Any, high: Any) -> Any:
    """The range that the rule gives for these extremes, moving the running one."""
    if words[SYMMETRIC] != 0:
        bound = _larger(f32(abs(low)), f32(abs(high)))
        low, high = f32(-bound), bound
    if words[STEPS] == 0:
        return low, high
    finite = _is_finite(low) & _is_finite(high)
    steps, running_low, running_high = i64_at(words[STEPS]), f32_at(words[LOW]), f32_at(words[HIGH])
    share = f32_at(words[SHARE])
    divisor = f32(1.0) if share[0] == f32(0.0) else share[0]
    old_low, old_high = f32(running_low[0] / divisor), f32(running_high[0] / divisor)
    if words[UPDATE] != 0:
        if finite:
            rate = f32(1.0) if share[0] == f32(0.0) else f32_at(words[CONSTANTS])[_MOMENTUM]
            old_low, old_high = _moved(old_low, low, rate), _moved(old_high, high, rate)
            steps[0] += 1
        if finite | (share[0] > f32(0.0)):
            share[0] = f32(1.0)
        running_low[0], running_high[0] = old_low, old_high
    if words[USE] != 0:
        if not finite:
            return f32(np.nan), f32(np.nan)
        if share[0] > f32(0.0):
            return old_low, old_high
    return low, high


@function
def _scaled(words: Any, low: Any, high: Any) -> Any:
    """(scale, zero point) of a range."""
    c = f32_at(words[CONSTANTS])
    lowest, largest = c[0], c[1]
    if words[ZERO_POINT] != 0:
        low = f32(0.0) if low > f32(0.0) else low
        high = f32(0.0) if high <= f32(0.0) else high  # -0.0 too
        half = f32(f32(high * f32(0.5)) - f32(low * f32(0.5)))
        scale = f32(half / f32(f32(largest - lowest) * f32(0.5)))
        divisor = f32(np.inf) if scale == f32(0.0) else scale
        zero = f32(lowest - f32(np.rint(f32(low / divisor))))
        zero = lowest if zero < lowest else zero
        zero = largest if zero > largest else zero
        return scale, zero if zero == zero else f32(0.0)
    if words[SIGNED] != 0:
        width = _larger(f32(abs(low)), f32(abs(high)))
    else:
        width = f32(0.0) if high <= f32(0.0) else high
        width = width if _is_finite(low) else f32(np.nan)
    scale = f32(width / c[_LARGEST])
    return _MOST if (scale == f32(np.inf)) & (width < f32(np.inf)) else scale, f32(0.0)


@function
def _measured(words: Any, granule: Any, low: Any, high: Any) -> None:
    """Keeps the scale and the zero point of a granule with these extremes, ordered."""
    least, most = _ranged(words, number(low), number(high))
    scale, zero = _scaled(words, least, most)
    f32_at(words[SCALE])[granule] = scale
    if words[ZERO_POINT] != 0:
        i32_at(words[ZERO_POINT])[granule] = i32(zero)


def quantize(source: int, folded: bool) -> Any:
    """The kernel from a source, each element times its factor when folded, to its range, and by
    their part to its elements."""

    def body(data: Any) -> None:
        words = i64_at(data)
        size, granules, own, team = words[SIZE], words[GRANULES], thread(), threads()
        shared = granules == 1
        first, last = granules * own // team, granules * (own + 1) // team
        if shared:
            first, last = i64(0), i64(1)
        each = size // granules
        slots = i32_at(data + 8 * WORDS)
        for granule in range(first, last):  # one body: each more is compiled anew
            start, end = granule * each, (granule + 1) * each
            if shared:
                start, end = size * own // team, size * (own + 1) // team
            low, high = _extremes(source, folded, words, start, end)
            if shared:
                slots[2 * own], slots[2 * own + 1] = low, high
                _barrier()
                if own == 0:
                    for other in range(1, team):
                        low, high = min(low, slots[2 * other]), max(high, slots[2 * other + 1])
            if not shared or own == 0:
                _measured(words, granule, low, high)
            if shared:
                _barrier()
            call(words[CODES], data, start, end)

    return kernel(body)
