"""Kernels from a tensor and its scale to elements, and back to numbers.

Each thread takes an equal run of elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.cgutils import ir
from numba.extending import intrinsic

from .compiled import (
    PART,
    SOURCE_BYTES,
    TARGET_BYTES,
    f32,
    f32_at,
    function,
    i8_at,
    i16_at,
    i32,
    i32_at,
    i64,
    i64_at,
    kernel,
    load,
    store,
    thread,
    threads,
    u8_at,
    u32,
)
from .compiled_rounding import element, noise
from .layout import OUTER

#: Places of the words of a quantizing kernel.  First a `layout.Walk`, each of its last five for
#: OUTER axes; then what else follows from formats and shapes; then addresses, 0 for what there is
#: not, of the elements' part and a running range's memory among them; then two int32 a thread.
#: symmetric: whether the range is; signed: whether the format is; update, use: whether a running
#: range moves, and is used
SIZE, ROW, INDEX_STEP, GRANULE_STEP, RUN = range(5)
SIZES, X_STEPS, RESULT_STEPS, INDEX_STEPS, GRANULE_STEPS = range(5, 5 + 5 * OUTER, OUTER)
RANDOM_BITS, CONSTANTS, GRANULES, SYMMETRIC, SIGNED, UPDATE, USE = range(
    5 + 5 * OUTER, 12 + 5 * OUTER
)
CODES, X, RESULT, SCALE, ZERO_POINT, KEY, FACTOR, LOW, HIGH, SHARE, STEPS = range(
    12 + 5 * OUTER, 23 + 5 * OUTER
)
WORDS = STEPS + 1


@intrinsic
def call(typingctx: Any, address: Any, words: Any, start: Any, end: Any) -> Any:
    """Calls the part at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 3).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@function
def row(words: Any, position: Any, end: Any) -> Any:
    """The row at a position of the walk: its length from there, its place in x, the result, the
    logical index and the granules, and how many elements begin it in the first granule."""
    inner, run = words[ROW], words[RUN]
    outer, column = position // inner, position % inner
    x, y = column, column
    index, granule = column * words[INDEX_STEP], column // run * words[GRANULE_STEP]
    for axis in range(OUTER - 1, -1, -1):
        size = words[SIZES + axis]
        if size > 1:
            at = outer % size
            outer = outer // size
            x += at * words[X_STEPS + axis]
            y += at * words[RESULT_STEPS + axis]
            index += at * words[INDEX_STEPS + axis]
            granule += at * words[GRANULE_STEPS + axis]
    length = min(inner - column, end - position)
    first = length if words[GRANULE_STEP] == 0 else min(length, run - column % run)
    return length, x, y, index, granule, first


@function
def _zero_point(zeros: Any, granule: Any) -> Any:
    return f32(i32_at(zeros)[granule]) if zeros != 0 else f32(0.0)


@function
def _step(scaled: Any, scales: Any, granule: Any) -> Any:
    """What x is divided by: where the scale is zero, so is x / inf; or multiplied with."""
    scale = f32_at(scales)[granule]
    return f32(np.inf) if (scaled == 1) & (scale == f32(0.0)) else scale


@function
def _scaled(scaled: Any, x: Any, step: Any) -> Any:
    return f32(x / step) if scaled == 1 else f32(x * step) if scaled == 2 else x


def codes(source: int, target: int, mode: int, scaled: int, folded: bool) -> Any:
    """The part from a source to elements of a target, by a rounding mode: those of the walk from
    start to end.

    scaled: 1 where x is divided by the scale of its granule and moved by its zero point, 2 where it
    is multiplied with it, 0 for neither; folded: it is multiplied by a factor before, whose
    granules are those of the walk, and has one scale.
    """
    noisy = mode == 5  # stochastic

    def body(data: Any, position: Any, end: Any) -> None:
        words = i64_at(data)
        low, high = u32(0), u32(0)
        if noisy:
            key = i64_at(words[KEY])[0]
            low, high = u32(key & 0xFFFFFFFF), u32((key >> 32) & 0xFFFFFFFF)
        shift, top = u32(32 - words[RANDOM_BITS]), f32(i64(1) << words[RANDOM_BITS])
        c = f32_at(words[CONSTANTS])
        constants = (c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7])
        scales, zeros, factors = words[SCALE], words[ZERO_POINT], words[FACTOR]
        step, along = u32(words[INDEX_STEP]), words[GRANULE_STEP] != 0
        scale, zero, factor = f32(1.0), f32(0.0), f32(1.0)
        while position < end:
            length, x, y, start, granule, first = row(words, position, end)
            x, y = words[X] + SOURCE_BYTES[source] * x, words[RESULT] + TARGET_BYTES[target] * y
            start = u32(start)
            if along and words[RUN] == 1:
                if scaled:
                    own = i64(0) if folded else granule
                    scale, zero = _step(scaled, scales, own), _zero_point(zeros, own)
                for i in range(length):
                    if folded:
                        factor = f32_at(factors)[granule + i]
                    elif scaled:
                        scale = _step(scaled, scales, granule + i)
                        zero = _zero_point(zeros, granule + i)
                    v = load(source, x, i)
                    v = f32(v * factor) if folded else v
                    z = _scaled(scaled, v, scale)
                    bits = noise(u32(start + u32(u32(i) * step)), low, high) if noisy else u32(0)
                    e = element(target, mode, z, v, zero, bits, shift, top, constants)
                    store(target, y, i, e)
            else:
                done = i64(0)
                while done < length:
                    own = i64(0) if folded else granule
                    if scaled:
                        scale, zero = _step(scaled, scales, own), _zero_point(zeros, own)
                    if folded:
                        factor = f32_at(factors)[granule]
                    for i in range(done, done + first):
                        v = load(source, x, i)
                        v = f32(v * factor) if folded else v
                        z = _scaled(scaled, v, scale)
                        index = u32(start + u32(u32(i) * step))
                        bits = noise(index, low, high) if noisy else u32(0)
                        e = element(target, mode, z, v, zero, bits, shift, top, constants)
                        store(target, y, i, e)
                    done += first
                    granule += 1
                    first = min(words[RUN], length - done)
            position += length

    return kernel(body, PART)


def quantize() -> Any:
    """The kernel from a tensor and its scale, if any, to elements, by their part."""

    def body(data: Any) -> None:
        words = i64_at(data)
        size, own, team = words[SIZE], thread(), threads()
        call(words[CODES], data, size * own // team, size * (own + 1) // team)

    return kernel(body)


def unshift(source: int) -> Any:
    """The kernel from elements, integers numbered as targets are, less a zero point, to float32.

    Its words: size, and the addresses of the elements, the result and the zero point (0: none).
    """
    size = TARGET_BYTES[source]

    def body(data: Any) -> None:
        words = i64_at(data)
        start, end = words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()
        zero = i32_at(words[3])[0] if words[3] != 0 else i32(0)
        x, y = words[1] + size * start, words[2] + 4 * start
        for i in range(end - start):
            if source == 1:
                v = i32(i8_at(x)[i])
            elif source == 2:
                v = i32(u8_at(x)[i])
            elif source == 3:
                v = i32(i16_at(x)[i])
            else:
                v = i32_at(x)[i]
            f32_at(y)[i] = f32(f32(v) - f32(zero))

    return kernel(body)
