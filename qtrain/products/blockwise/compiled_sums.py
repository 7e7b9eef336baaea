"""Sums in blocks, compiled as the fused quantizers are: see `sums`.

Outputs are innermost: four rows and a tile of columns at a time, whose sums stay in the nearest
cache while a block's terms are added to them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from quantizers.kernels.compiled import (
    f32,
    f32_at,
    f64,
    f64_at,
    fl24,
    function,
    i64,
    i64_at,
    kernel,
    thread,
    threads,
)

#: rows that are summed together, and how many of these meet a block while it lies in a cache
ROWS, GROUPS = 4, 8

#: products in a sum are exact, or are rounded with it: one instruction for both
_added = numba.njit(error_model="numpy", boundscheck=False, fastmath={"contract"})


def sums(wide: int, far: int, COLUMNS: int) -> Any:
    """result[i, j] += fl32(S) * fl24(scale_a[i] * scale_b[j]) of every block, in order.

    wide: whether S is taken in fp64, else in fp32; far: whether the product of two scales may leave
    fp32's normal numbers; COLUMNS: of a tile.  words, A places' and B columns' own:

    0  batches; 1, 2  result's batches that share one of a, one of b; 3  rows of the result;
    4  its columns (a multiple of COLUMNS)
    5  positions; 6  terms of one, 7  of a block;  8  places of a batch of a
    9  rows that one table of places serves, of as many places; 10  those it chooses among
    11 a (fp32, (batch, places, terms of a position)); 12  its scales (fp32, (batch, places, blocks
       of a position)); 13  the table (int64, (rows, positions), -1 for none), 0 where place is row
    14 b (fp64 or fp32, (batch, columns / COLUMNS, positions, terms of one of b's, COLUMNS));
       15  its scales (fp32, (batch, blocks, columns))
    16 the result (fp32, (batch, columns / COLUMNS, rows up to a multiple of ROWS, COLUMNS), zeros);
    17 as many zeros as a position has terms; 18  the terms of a position that b has
    """
    real, real_at = (f64, f64_at) if wide else (f32, f32_at)
    real_type = types.float64 if wide else types.float32
    tile_size, width = ROWS * COLUMNS, 8 if wide else 4

    @_added  # type: ignore[untyped-decorator]
    def added(a0: Any, a1: Any, a2: Any, a3: Any, b: Any, total: Any, length: Any) -> None:
        """total: (ROWS, COLUMNS), the sums of `length` terms of four rows."""
        for j in range(tile_size):
            total[j] = real(0.0)
        whole = length // 4 * 4
        for k in range(0, whole, 4):
            p0, p1, p2, p3 = real(a0[k]), real(a0[k + 1]), real(a0[k + 2]), real(a0[k + 3])
            q0, q1, q2, q3 = real(a1[k]), real(a1[k + 1]), real(a1[k + 2]), real(a1[k + 3])
            r0, r1, r2, r3 = real(a2[k]), real(a2[k + 1]), real(a2[k + 2]), real(a2[k + 3])
            s0, s1, s2, s3 = real(a3[k]), real(a3[k + 1]), real(a3[k + 2]), real(a3[k + 3])
            place = k * COLUMNS
            for j in range(COLUMNS):
                b0, b1 = b[place + j], b[place + COLUMNS + j]
                b2, b3 = b[place + 2 * COLUMNS + j], b[place + 3 * COLUMNS + j]
                total[j] += p0 * b0 + p1 * b1 + p2 * b2 + p3 * b3
                total[COLUMNS + j] += q0 * b0 + q1 * b1 + q2 * b2 + q3 * b3
                total[2 * COLUMNS + j] += r0 * b0 + r1 * b1 + r2 * b2 + r3 * b3
                total[3 * COLUMNS + j] += s0 * b0 + s1 * b1 + s2 * b2 + s3 * b3
        for k in range(whole, length):
            p0, q0, r0, s0 = real(a0[k]), real(a1[k]), real(a2[k]), real(a3[k])
            for j in range(COLUMNS):
                b0 = b[k * COLUMNS + j]
                total[j] += p0 * b0
                total[COLUMNS + j] += q0 * b0
                total[2 * COLUMNS + j] += r0 * b0
                total[3 * COLUMNS + j] += s0 * b0

    @function
    def finished(total: Any, start: Any, scale: Any, others: Any, result: Any, wild: Any) -> None:
        """result += fl32(total) * fl24(scale * others), a row of a tile; wild: as far."""
        for j in range(COLUMNS):
            if wild:
                result[j] += f32(f64(f32(total[start + j])) * fl24(scale, others[j]))
            else:
                result[j] += f32(total[start + j]) * f32(scale * others[j])

    def body(data: Any) -> None:
        words = numba.carray(data, (19,), np.int64)
        batches, rows, columns = words[0], words[3], words[4]
        positions, terms, step, places = words[5], words[6], words[7], words[8]
        served, chosen, table = words[9], words[10], i64_at(words[13])
        own = -(-terms // step)  # blocks of a position
        blocks, tiles, groups = positions * own, columns // COLUMNS, -(-rows // ROWS)
        start = batches * groups * thread() // threads()
        stop = batches * groups * (thread() + 1) // threads()
        total = np.empty(tile_size, real_type)
        at, scales = np.empty(ROWS, np.int64), np.empty(ROWS, np.float32)
        while start < stop:
            batch = start // groups
            end = min(stop, (batch + 1) * groups, start + GROUPS)
            of_a, of_b = batch // words[1], batch // words[2]
            for tile in range(tiles):
                for block in range(blocks):
                    position, low = block // own, block % own * step
                    length = min(step, terms - low)
                    first = ((of_b * tiles + tile) * positions + position) * words[18] + low
                    b = real_at(words[14] + width * first * COLUMNS)
                    column = (of_b * blocks + block) * columns + tile * COLUMNS
                    others = f32_at(words[15] + 4 * column)
                    for group in range(start - batch * groups, end - batch * groups):
                        for i in range(ROWS):
                            row = group * ROWS + i
                            place = row if row < rows else i64(-1)
                            if words[13] != 0 and place >= 0:
                                place = table[row % served * positions + position]
                                if place >= 0:
                                    place += row // served * chosen
                            at[i], scales[i] = words[17], f32(0.0)
                            if place >= 0:
                                place += of_a * places
                                at[i] = words[11] + 4 * (place * terms + low)
                                scales[i] = f32_at(words[12])[place * own + block % own]
                        added(
                            f32_at(at[0]), f32_at(at[1]), f32_at(at[2]), f32_at(at[3]), b, total,
                            length,
                        )  # fmt: skip
                        line = ((batch * tiles + tile) * groups + group) * tile_size
                        for i in range(ROWS):
                            result = f32_at(words[16] + 4 * (line + i * COLUMNS))
                            finished(total, i * COLUMNS, scales[i], others, result, far)
            start = end

    return kernel(body)


def packed(wide: int, COLUMNS: int) -> Any:
    """Columns beside one another, COLUMNS at a time, zeros behind the last.

    words: matrices, columns, terms, and the addresses of b (fp32, (matrices, columns, terms)) and
    of the result (fp64 or fp32, (matrices, columns / COLUMNS rounded up, terms, COLUMNS)).
    """
    real, real_at = (f64, f64_at) if wide else (f32, f32_at)

    def body(data: Any) -> None:
        words = numba.carray(data, (5,), np.int64)
        columns, terms = words[1], words[2]
        tiles = -(-columns // COLUMNS)
        b, result = f32_at(words[3]), real_at(words[4])
        lines = words[0] * tiles * terms
        for line in range(lines * thread() // threads(), lines * (thread() + 1) // threads()):
            matrix, first, k = line // terms // tiles, line // terms % tiles * COLUMNS, line % terms
            source, count = (matrix * columns + first) * terms + k, min(COLUMNS, columns - first)
            for j in range(count):
                result[line * COLUMNS + j] = real(b[source + j * terms])
            for j in range(count, COLUMNS):
                result[line * COLUMNS + j] = real(0.0)

    return kernel(body)
