"""A quantizer with its range in one kernel: extremes, scale, zero point, running range, elements.

The arithmetic is that of `ranges` and `quantizer`, operation by operation in fp32.  A granule is a
run of consecutive elements in the order of the walk; a single one is shared by all threads, several
are dealt out to them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba import types

from .compiled import (
    MODES,
    SOURCE_BYTES,
    SOURCES,
    TARGET_BYTES,
    TARGETS,
    as_float,
    element,
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
    noise,
    store,
    thread,
    threads,
    u32,
)
from .layout import OUTER
from .team import openmp

#: what the words mean; the walk's words follow, its granules those of the factor where there is
#: one.  update: whether the running range moves; use: whether it is used
WORDS = (
    "size", "row", "index_step", "factor_step", "x", "result", "scale", "zero_point", "key",
    "random_bits", "constants", "factor", "granules", "slots", "absmax", "affine", "signed",
    "steps", "low", "high", "update", "use",
)  # fmt: skip
_HEAD = len(WORDS)

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
def _ordered(x: Any) -> Any:
    """float32 -> int32 in the order of the numbers; NaN lies beyond the infinities."""
    bits = i32(float_bits(x))
    return i32(bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF)))


@function
def _number(key: Any) -> Any:
    """The inverse of `_ordered`."""
    return as_float(u32(i32(key ^ ((key >> i32(31)) & i32(0x7FFFFFFF)))))


@function
def _row(words: Any, position: Any, end: Any) -> Any:
    """The run of elements at a position: its length, and its place in x, the result, the logical
    index and the factors."""
    inner = words[1]
    row, column = position // inner, position % inner
    x, y = column, column
    index, factor = column * words[2], column * words[3]
    for axis in range(OUTER - 1, -1, -1):
        size = words[_HEAD + axis]
        if size > 1:
            at = row % size
            row = row // size
            x += at * words[_HEAD + OUTER + axis]
            y += at * words[_HEAD + 2 * OUTER + axis]
            index += at * words[_HEAD + 3 * OUTER + axis]
            factor += at * words[_HEAD + 4 * OUTER + axis]
    return min(inner - column, end - position), x, y, index, factor


@function
def _extremes(source: Any, folded: Any, words: Any, position: Any, end: Any) -> Any:
    """Smallest and largest, ordered, of the elements of the walk from position to end."""
    low, high = i32(0x7FFFFFFF), i32(-0x80000000)
    while position < end:
        length, x, _, _, factor = _row(words, position, end)
        x = words[4] + SOURCE_BYTES[source] * x
        if folded and words[3] == 1:
            factors = words[11] + 4 * factor
            for i in range(length):
                v = _ordered(f32(load(source, x, i) * f32_at(factors)[i]))
                low, high = min(low, v), max(high, v)
        else:
            one = f32(1.0)
            if folded:
                one = f32_at(words[11])[factor]
            for i in range(length):
                v = load(source, x, i)
                if folded:
                    v = f32(v * one)
                k = _ordered(v)
                low, high = min(low, k), max(high, k)
        position += length
    return low, high


@function
def _codes(
    source: Any, target: Any, mode: Any, folded: Any, words: Any, position: Any, end: Any,
    scale: Any, zero: Any,
) -> None:  # fmt: skip
    """The elements of the walk from position to end."""
    low, high = u32(0), u32(0)
    if mode == 5:
        key = i64_at(words[8])[0]
        low, high = u32(key & 0xFFFFFFFF), u32((key >> 32) & 0xFFFFFFFF)
    shift, top = u32(32 - words[9]), f32(i64(1) << words[9])
    c = f32_at(words[10])
    constants = (c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7])
    step = u32(words[2])
    scale = f32(np.inf) if scale == f32(0.0) else scale
    while position < end:
        length, x, y, index, factor = _row(words, position, end)
        x, y = words[4] + SOURCE_BYTES[source] * x, words[5] + TARGET_BYTES[target] * y
        first = u32(index)
        if folded and words[3] == 1:
            factors = words[11] + 4 * factor
            for i in range(length):
                bits = noise(u32(first + u32(u32(i) * step)), low, high) if mode == 5 else u32(0)
                v = f32(f32(load(source, x, i) * f32_at(factors)[i]) / scale)
                store(target, y, i, element(target, mode, v, zero, bits, shift, top, constants))
        else:
            one = f32(1.0)
            if folded:
                one = f32_at(words[11])[factor]
            for i in range(length):
                bits = noise(u32(first + u32(u32(i) * step)), low, high) if mode == 5 else u32(0)
                v = load(source, x, i)
                if folded:
                    v = f32(v * one)
                v = f32(v / scale)
                store(target, y, i, element(target, mode, v, zero, bits, shift, top, constants))
        position += length


@function
def _is_finite(x: Any) -> Any:
    return f32(abs(x)) < f32(np.inf)


@function
def _larger(a: Any, b: Any) -> Any:
    """The larger, or NaN where one is."""
    larger = a if a > b else b
    return f32(np.nan) if (a != a) | (b != b) else larger


@function
def _ranged(words: Any, low: Any, high: Any) -> Any:
    """The range that the rule gives for these extremes, moving the running one."""
    if words[14] != 0:
        bound = _larger(f32(abs(low)), f32(abs(high)))
        low, high = f32(-bound), bound
    if words[17] == 0:
        return low, high
    finite = _is_finite(low) & _is_finite(high)
    steps, running_low, running_high = i64_at(words[17]), f32_at(words[18]), f32_at(words[19])
    if (words[20] != 0) & finite:
        weight = f32(1.0) if steps[0] == 0 else f32_at(words[10])[9]
        running_low[0] = f32(running_low[0] + f32(f32(low - running_low[0]) * weight))
        running_high[0] = f32(running_high[0] + f32(f32(high - running_high[0]) * weight))
        steps[0] += 1
    if words[21] != 0:
        if not finite:
            return f32(np.nan), f32(np.nan)
        if steps[0] > 0:
            return running_low[0], running_high[0]
    return low, high


@function
def _scaled(words: Any, low: Any, high: Any) -> Any:
    """(scale, zero point) of a range."""
    c = f32_at(words[10])
    lowest, largest = c[0], c[1]
    if words[15] != 0:
        low = f32(0.0) if low > f32(0.0) else low
        high = f32(0.0) if high < f32(0.0) else high
        scale = f32(f32(high - low) / f32(largest - lowest))
        divisor = f32(np.inf) if scale == f32(0.0) else scale
        zero = f32(lowest - f32(np.rint(f32(low / divisor))))
        zero = lowest if zero < lowest else zero
        zero = largest if zero > largest else zero
        return scale, zero if zero == zero else f32(0.0)
    if words[16] != 0:
        width = _larger(f32(abs(low)), f32(abs(high)))
    else:
        width = f32(0.0) if high < f32(0.0) else high
        width = width if _is_finite(low) else f32(np.nan)
    return f32(width / f32_at(words[10])[8]), f32(0.0)


def quantize(source: int, target: int, mode: int, folded: bool) -> Any:
    """The kernel from SOURCES[source], each element times its factor when folded, to TARGETS."""
    assert source < len(SOURCES) and target < len(TARGETS) and mode < len(MODES)

    def body(data: Any) -> None:
        words = numba.carray(data, (_HEAD + 5 * OUTER,), np.int64)
        size, granules, own, team = words[0], words[12], thread(), threads()
        scales, zeros = f32_at(words[6]), i32_at(words[7])
        if granules == 1:
            start, end = size * own // team, size * (own + 1) // team
            slots = i32_at(words[13])
            low, high = _extremes(source, folded, words, start, end)
            slots[2 * own], slots[2 * own + 1] = low, high
            _barrier()
            if own == 0:
                for other in range(1, team):
                    low, high = min(low, slots[2 * other]), max(high, slots[2 * other + 1])
                least, most = _ranged(words, _number(low), _number(high))
                scale, zero = _scaled(words, least, most)
                scales[0] = scale
                if words[15] != 0:
                    zeros[0] = i32(zero)
            _barrier()
            zero = f32(zeros[0]) if words[15] != 0 else f32(0.0)
            _codes(source, target, mode, folded, words, start, end, scales[0], zero)
        else:
            each = size // granules
            for granule in range(granules * own // team, granules * (own + 1) // team):
                start, end = granule * each, (granule + 1) * each
                low, high = _extremes(source, folded, words, start, end)
                least, most = _ranged(words, _number(low), _number(high))
                scale, zero = _scaled(words, least, most)
                scales[granule] = scale
                if words[15] != 0:
                    zeros[granule] = i32(zero)
                _codes(source, target, mode, folded, words, start, end, scale, zero)

    return kernel(body)
