"""Two positions of a sum in an entry, as bf16 units read them; in blocks that a core's caches hold.

Elements of a are counted in 2^-40, so that even a subnormal one is a normal number to units that
know no others, and so is every sum: the least product is 2^-133 2^40 2^-33.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    f32,
    float_bits,
    function,
    i8_at,
    i32,
    i64,
    i64_at,
    load,
    pointer,
    u8_at,
    u32,
)

from .compiled_tile import COLUMNS, ROWS

u32_at = pointer(types.uint32)

#: of a sum, in a block
POSITIONS = 256
#: what elements of a are counted in, as its inverse and itself
UP, DOWN = f32(2.0**40), f32(2.0**-40)
#: bytes of an element of b by its kind: a source's number, or int8, uint8
KIND_BYTES = (*SOURCE_BYTES, 1, 1)
#: bytes of a tile's packed rows (and a line, so that tiles do not share a set of the cache), and of
#: its packed columns
A_TILE = 4 * ROWS * (POSITIONS // 2) + 64
B_TILE = 4 * COLUMNS * (POSITIONS // 2)
_MAGNITUDE, _UPPER = u32(0x7FFFFFFF), u32(0xFFFF0000)


def _bits(x: float) -> Any:
    return u32(np.float32(x).view(np.uint32))


#: that sums stay below infinity: a below 2^38, b between 2^-26 and 2^18, or 0
_A_END = _bits(2.0**78)
_B_START, _B_END = _bits(2.0**-26), _bits(2.0**18)


@function
def _joined(low: Any, high: Any) -> Any:
    """The bits of two fp32 numbers that bf16 holds -> an entry."""
    return u32((low >> u32(16)) | (high & _UPPER))


@function
def pack_a(source: Any, x: Any, step: Any, count: Any, rows: Any, to: Any) -> Any:
    """Rows from address x, a position `step` bytes after the other, as tiles from address `to`;
    whether one of them is too large, or not finite."""
    size, worst = SOURCE_BYTES[source], u32(0)
    for p in range((count + 1) // 2):
        one = x + 2 * p * step
        other = one + step if 2 * p + 1 < count else one  # to meet a column of zeros
        for i in range(rows):  # apart: a tile is too short to look for a largest in
            low = float_bits(f32(load(source, one, i) * UP)) & _MAGNITUDE
            high = float_bits(f32(load(source, other, i) * UP)) & _MAGNITUDE
            worst = max(worst, low, high)
        for t in range((rows + ROWS - 1) // ROWS):
            out, first = u32_at(to + t * A_TILE + 4 * ROWS * p), size * ROWS * t
            if rows - ROWS * t >= ROWS:
                for i in range(ROWS):
                    low = float_bits(f32(load(source, one + first, i) * UP))
                    high = float_bits(f32(load(source, other + first, i) * UP))
                    out[i] = _joined(low, high)
            else:
                for i in range(ROWS):
                    low, high = u32(0), u32(0)
                    if i < rows - ROWS * t:
                        low = float_bits(f32(load(source, one + first, i) * UP))
                        high = float_bits(f32(load(source, other + first, i) * UP))
                    out[i] = _joined(low, high)
    return worst >= _A_END


@function
def _number(kind: Any, x: Any, i: Any, zero: Any) -> Any:
    """The bits of element i of a kind, its zero point taken off."""
    if kind == 3:
        return float_bits(f32(i32(i32(i8_at(x)[i]) - zero)))
    if kind == 4:
        return float_bits(f32(i32(i32(u8_at(x)[i]) - zero)))
    return float_bits(load(kind, x, i))


@function
def _beyond(bits: Any) -> Any:
    magnitude = u32(bits & _MAGNITUDE)
    outside = (magnitude < _B_START) | (magnitude >= _B_END)
    return u32(1) if outside & (magnitude != u32(0)) else u32(0)


@function
def pack_b(
    kind: Any, table: Any, count: Any, blank: Any, start: Any, columns: Any, zero: Any, to: Any
) -> Any:
    """Columns from byte `start` of the rows whose addresses are in a table, as a tile at address
    `to`; whether one of them is too small or too large.  blank: the address of a row of zeros."""
    rows, worst = i64_at(table), u32(0)
    for p in range((count + 1) // 2):
        one = rows[2 * p] + start
        other = (rows[2 * p + 1] if 2 * p + 1 < count else blank) + start
        out = u32_at(to + 4 * COLUMNS * p)
        if columns == COLUMNS:
            for i in range(COLUMNS):
                low, high = _number(kind, one, i, zero), _number(kind, other, i, zero)
                if kind < 3:
                    worst |= _beyond(low) | _beyond(high)
                out[i] = _joined(low, high)
        else:
            for i in range(COLUMNS):
                low, high = u32(0), u32(0)
                if i < columns:
                    low, high = _number(kind, one, i, zero), _number(kind, other, i, zero)
                if kind < 3:
                    worst |= _beyond(low) | _beyond(high)
                out[i] = _joined(low, high)
    return worst != u32(0)


@function
def rows_met(
    moves: Any, tap: Any, base: Any, step: Any, blank: Any, first: Any, count: Any, table: Any
) -> None:
    """The addresses of the rows of b that `count` positions of a, from the first, meet at a tap.

    base: of b's first row, whose next is `step` bytes on; moves: a `Moves`.
    """
    rows = i64_at(table)
    across, out_h, out_w, in_h, in_w = moves[0], moves[1], moves[2], moves[3], moves[4]
    down = tap // across * moves[9] - moves[7]
    right = tap % across * moves[10] - moves[8]
    done = i64(0)
    while done < count:
        n, h = (first + done) // (out_h * out_w), (first + done) // out_w % out_h
        w = (first + done) % out_w
        run = min(out_w - w, count - done)
        y = h * moves[5] + down
        row, inside = base + (n * in_h + y) * in_w * step, (y >= 0) & (y < in_h)
        for i in range(run):
            x = (w + i) * moves[6] + right
            rows[done + i] = row + x * step if inside & (x >= 0) & (x < in_w) else blank
        done += run
