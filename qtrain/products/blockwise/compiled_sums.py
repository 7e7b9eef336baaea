"""Sums in blocks, compiled as the fused quantizers are: see `sums`.

Outputs are innermost: a tile of four rows and some columns at a time, see `compiled_tile`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantizers.kernels.compiled import (
    f32,
    f32_at,
    f64_at,
    function,
    i32,
    i32_at,
    i64,
    i64_at,
    kernel,
    thread,
    threads,
    u8_at,
)

from .compiled_tile import COLUMNS, DOUBLE, INTEGER, ROWS, SHIFT, tile
from .compiled_transpose import LANES, turned

#: groups of ROWS rows that meet a block while it lies in a cache
GROUPS = 16


def sums(unit: int, far: int) -> Any:
    """result[i, j] += fl32(S) * fl24(scale_a[i] * scale_b[j]) of every block, in order.

    unit: in which S is taken; far: whether the product of two scales may leave fp32's normal
    numbers.  words, A places' and B columns' own:

    0  batches; 1, 2  result's batches that share one of a, one of b; 3  rows of the result;
    4  its columns (a multiple of a tile's)
    5  positions; 6  terms of one, 7  of a block;  8  places of a batch of a
    9  rows that one table of places serves, of as many places; 10  those it chooses among
    11 a (batch, places, terms of a position); 12, 13  bytes of a place, of a block in it
    14 its scales (fp32, (batch, places, blocks of a position));
    15 the table (int64, (rows, positions), -1 for none), 0 where place is row;  16  a place of 0s
    17 b (batch, tiles, positions, terms of one, columns of a tile); 18, 19  bytes of a position, of
       a block in it;  20  what its blocks' sums start from (int32, (batch, tiles, blocks, columns))
    21 its scales (fp32, (batch, blocks, columns))
    22 the result (fp32, (batch, tiles, rows up to a multiple of ROWS, columns of a tile), zeros)

    a and b as `compiled_tile` takes them; of int8 units, a block is filled up to fours of terms.
    """
    columns, added = COLUMNS[unit], tile(unit, far)

    def body(data: Any) -> None:
        words = i64_at(data)
        batches, rows, positions, terms, step = words[0], words[3], words[5], words[6], words[7]
        served, table, scales = words[9], i64_at(words[15]), f32_at(words[14])
        own = -(-terms // step)  # blocks of a position
        tiles, groups = words[4] // columns, -(-rows // ROWS)
        start = batches * groups * thread() // threads()
        stop = batches * groups * (thread() + 1) // threads()
        places, at = np.empty(ROWS * GROUPS, np.int64), np.empty(ROWS, np.int64)
        scale = np.empty(ROWS, np.float32)
        while start < stop:
            batch = start // groups
            end = min(stop, (batch + 1) * groups, start + GROUPS)
            of_a, of_b = batch // words[1], batch // words[2]
            first = (start - batch * groups) * ROWS
            for part in range(tiles * positions):
                of_tile, position = of_b * tiles + part // positions, part % positions
                row, base = first % served, of_a * words[8] + first // served * words[10]
                for i in range((end - start) * ROWS):
                    place = base + row if words[15] == 0 else table[row * positions + position]
                    if words[15] != 0 and place >= 0:
                        place += base
                    places[i] = place if first + i < rows else i64(-1)
                    row += 1
                    if row == served:
                        row, base = i64(0), base + words[10]
                for block in range(own):
                    length = min(step, terms - block * step)
                    if unit == INTEGER:
                        length = (step + 3) // 4
                    b = words[17] + (of_tile * positions + position) * words[18] + block * words[19]
                    line = (of_tile * positions + position) * own + block
                    begin = words[20] + 4 * columns * line
                    column = (of_b * positions * own + position * own + block) * words[4]
                    others = words[21] + 4 * (column + part // positions * columns)
                    for group in range(start, end):
                        for i in range(ROWS):
                            place = places[(group - start) * ROWS + i]
                            at[i], scale[i] = words[16], f32(0.0)
                            if place >= 0:
                                at[i] = words[11] + place * words[12] + block * words[13]
                                scale[i] = scales[place * own + block]
                        line = (batch * tiles + part // positions) * groups + group - batch * groups
                        added(
                            at[0], at[1], at[2], at[3], b, begin, length, scale.ctypes.data, others,
                            words[22] + 4 * line * ROWS * columns,
                        )  # fmt: skip
            start = end

    return kernel(body)


def packed(unit: int) -> Any:
    """Columns beside one another, as many as a tile has, zeros behind the last.

    words: matrices, columns, terms, and the addresses of b (32 bits each, (matrices, columns,
    terms)) and of the result ((matrices, tiles, terms, columns of a tile), fp64 for that unit).
    """
    wide, across = unit == DOUBLE, COLUMNS[unit]
    turn, size = turned(wide), 8 if wide else 4

    def body(data: Any) -> None:
        words = i64_at(data)
        columns, terms = words[1], words[2]
        tiles, runs = -(-columns // across), -(-terms // LANES)
        b, result = f32_at(words[3]), f64_at(words[4]) if wide else f32_at(words[4])
        lines = words[0] * tiles * runs
        for line in range(lines * thread() // threads(), lines * (thread() + 1) // threads()):
            place, start = line // runs, line % runs * LANES
            first, length = place % tiles * across, min(i64(LANES), terms - start)
            source = (place // tiles * columns + first) * terms + start
            to = (place * terms + start) * across
            for j in range(0, across, LANES):
                if (length == LANES) & (first + j + LANES <= columns):
                    turn(
                        words[3] + 4 * (source + j * terms), 4 * terms,
                        words[4] + size * (to + j), i64(size * across),
                    )  # fmt: skip
                else:
                    for i in range(j, j + LANES):
                        for k in range(length):
                            one = b[source + i * terms + k] if first + i < columns else f32(0.0)
                            result[to + k * across + i] = one

    return kernel(body)


@function
def _byte(x: Any, up: Any) -> Any:
    """x in what `up` is the inverse of, or 0 where it is no integer of a byte there; whether so."""
    v = f32(x * up)
    inside = (f32(abs(v)) <= f32(127.0)) & (v == f32(np.rint(v)))
    return i32(v if inside else f32(0.0)), not inside


def rows_by_blocks(unit: int, shift: int) -> Any:
    """Rows as a unit takes them, their blocks filled up: fp32 as it is, or bytes, `shift` for 0, in
    fours.

    words: rows, terms, terms of a block, numbers from a row to the next, from a block to the next;
    addresses of x (fp32), of the result, of the sums of a block's bytes times -SHIFT (int32, (rows,
    blocks)), of an int32 that becomes 1 where an element is no integer of a byte; the inverse of
    what elements count in, as the bits of fp64.
    """

    def body(data: Any) -> None:
        words = i64_at(data)
        up, terms, step = f32(f64_at(data)[9]), words[1], words[2]
        own, each, beyond = -(-terms // step), (step + 3) // 4 * 4, False
        for row in range(words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()):
            for block in range(own):
                x, length = (
                    f32_at(words[5] + 4 * (row * terms + block * step)),
                    terms - block * step,
                )
                place, total = row * words[3] + block * words[4], i32(0)
                if unit == INTEGER:
                    out = u8_at(words[6] + place)
                    for k in range(min(step, length)):
                        v, bad = _byte(x[k], up)
                        beyond |= bad
                        total += v
                        out[k] = np.uint8(v + i32(shift))
                    for k in range(min(step, length), each):
                        out[k] = np.uint8(shift)
                    i32_at(words[7])[row * own + block] = i32(-SHIFT) * total
                else:
                    for k in range(min(step, length)):
                        f32_at(words[6] + 4 * place)[k] = x[k]
        if beyond:
            i32_at(words[8])[0] = i32(1)

    return kernel(body)
