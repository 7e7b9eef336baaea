"""Sums of accumulators, compiled: what `quantizers.accumulate` gives, bit for bit.

Outputs are innermost: a row's terms one after the other, each added to a tile of columns at once,
in fp64, where products of two fp32 numbers are exact and a sum is rounded to odd before it is
rounded to its format.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantizers.kernels.compiled import (
    f32_at,
    f64,
    f64_at,
    function,
    i64,
    i64_at,
    kernel,
    thread,
    threads,
    u32,
)
from quantizers.kernels.compiled_rounding import noise

from .compiled_numbers import bits_of, number_of, odd_sum, rounded

#: kinds of accumulators, and columns of a tile
SEQUENTIAL, ALIGNED, SATURATED = 0, 1, 2
COLUMNS = 64
#: rows that meet a tile of columns while it lies in a cache
ROWS = 8


def sums(kind: int, mode: int, odd: int, product: int, compensated: int) -> Any:
    """result[i, j] of matrices a (i, k) and b (j, k), by an accumulator; numbers as in `sums.py`.

    odd: whether a sum in fp64 may be inexact in a way that its rounding sees.  words:

    0  batches; 1, 2  those that share one of a, one of b; 3  rows; 4  columns; 5  terms
    6  a (fp32, (batch, rows, terms)); 7  b (fp64, (batch, tiles, terms, COLUMNS)); 8  the result
       (fp64, (batch, tiles, rows, COLUMNS)); 9  tiles
    10 chunk, or terms of a unit; 11  keys (int64), of the additions; 12  a unit's promotion
    13 constants (fp64): format, format of the products, random bits' share, then of a unit
    14 keys of the products
    """

    @function
    def draw_of(keys: Any, number: Any, index: Any, share: Any) -> Any:
        if mode != 5:
            return 0.0
        key = keys[number]
        bits = noise(
            u32(index), u32(key & i64(0xFFFFFFFF)), u32((key >> i64(32)) & i64(0xFFFFFFFF))
        )
        return f64(np.floor(f64(bits) * f64(share * 2.0**-32))) + 0.5

    @function
    def plus(x: Any, y: Any, draw: Any, share: Any, format: Any) -> Any:
        total = odd_sum(x, y) if odd else f64(x + y)
        return rounded(mode, total, draw, share, format)

    @function
    def add(total: Any, lost: Any, term: Any, draw: Any, share: Any, format: Any) -> Any:
        """A term added to the sum of a column and what that lost."""
        if not compensated:
            return plus(total, term, draw, share, format), lost
        own = plus(term, -lost, draw, share, format)
        grown = plus(total, own, draw, share, format)
        gained = plus(grown, -total, draw, share, format)
        return grown, plus(gained, -own, draw, share, format)

    @function
    def sequential(
        a: Any, b: Any, terms: Any, chunk: Any, work: Any, keys: Any, others: Any,
        constants: Any, index: Any,
    ) -> None:  # fmt: skip
        """work: (4, COLUMNS): the sum, its lost part, a chunk's, and that one's."""
        format = constants[0], constants[1], constants[2], constants[3], constants[4]
        narrow = constants[5], constants[6], constants[7], constants[8], constants[9]
        share, at = constants[10], i64(0) if chunk == 0 else i64(2 * COLUMNS)
        for j in range(4 * COLUMNS):
            work[j] = 0.0
        for k in range(terms):
            left, place = f64(a[k]), k * COLUMNS
            for j in range(COLUMNS):
                term = f64(left * b[place + j])
                if product:
                    draw = draw_of(others, k, index + j, share)
                    term = rounded(mode, term, draw, share, narrow)
                draw = draw_of(keys, k, index + j, share)
                own = at + j
                work[own], work[own + COLUMNS] = add(
                    work[own], work[own + COLUMNS], term, draw, share, format
                )
            if chunk != 0 and ((k + 1) % chunk == 0 or k + 1 == terms):
                number = terms + k // chunk
                for j in range(COLUMNS):
                    draw = draw_of(keys, number, index + j, share)
                    work[j], work[j + COLUMNS] = add(
                        work[j], work[j + COLUMNS], work[at + j], draw, share, format
                    )
                    work[at + j] = 0.0
                    work[at + j + COLUMNS] = 0.0

    @function
    def exponent(x: Any, smallest: Any) -> Any:
        return max(i64((bits_of(x) >> i64(52)) & i64(0x7FF)) - i64(1023), smallest)

    @function
    def unit(
        a: Any, b: Any, terms: Any, each: Any, promote: Any, work: Any, tops: Any, constants: Any
    ) -> None:  # fmt: skip
        """work: (4, COLUMNS): the result, then of a group the sum before it and its own."""
        for j in range(4 * COLUMNS):
            work[j] = 0.0
        outer, total, group = work[:COLUMNS], work[COLUMNS : 2 * COLUMNS], work[2 * COLUMNS :]
        of_a, of_b, bits = i64(constants[11]), i64(constants[12]), i64(constants[13])
        wide = constants[5], constants[6], constants[7], constants[8], constants[9]
        low = i64(0)
        while low < terms:
            high = min(low + each, terms)
            for j in range(COLUMNS):
                tops[j] = exponent(total[j], i64(-126))
            for k in range(low, high):
                own = exponent(f64(a[k]), of_a)
                for j in range(COLUMNS):
                    tops[j] = max(tops[j], own + exponent(b[k * COLUMNS + j], of_b))
            for j in range(COLUMNS):
                tops[j] = min(tops[j], i64(300))  # an infinite term's is no exponent
                up = number_of((i64(1023) + bits - tops[j]) << i64(52))
                group[j] = f64(np.trunc(f64(total[j] * up)) + 0.0)  # no sum is -0
            for k in range(low, high):
                left = f64(a[k])
                for j in range(COLUMNS):
                    up = number_of((i64(1023) + bits - tops[j]) << i64(52))
                    group[j] += f64(np.trunc(f64(f64(left * b[k * COLUMNS + j]) * up)))
            for j in range(COLUMNS):
                found = f64(group[j] * number_of((i64(1023) - bits + tops[j]) << i64(52)))
                total[j] = rounded(1, found, 0.0, 0.0, constants)
            done = high == terms or (promote != 0 and high % promote == 0)
            if done:
                for j in range(COLUMNS):
                    if promote != 0:
                        outer[j] = rounded(0, odd_sum(outer[j], total[j]), 0.0, 0.0, wide)
                        total[j] = 0.0
                    else:
                        outer[j] = total[j]
            low = high

    @function
    def saturated(a: Any, b: Any, terms: Any, work: Any, constants: Any) -> None:
        for j in range(COLUMNS):
            work[j] = 0.0
        low, high = constants[0], constants[1]
        for k in range(terms):
            left, place = f64(a[k]), k * COLUMNS
            for j in range(COLUMNS):
                total = f64(work[j] + f64(left * b[place + j]))
                work[j] = min(max(total, low), high)

    def body(data: Any) -> None:
        words = i64_at(data)
        batches, rows, columns, terms, tiles = words[0], words[3], words[4], words[5], words[9]
        constants = f64_at(words[13])
        keys, others = i64_at(words[11]), i64_at(words[14])
        work, tops = np.empty(4 * COLUMNS, np.float64), np.empty(COLUMNS, np.int64)
        groups = -(-rows // ROWS)
        for group in range(
            batches * groups * thread() // threads(), batches * groups * (thread() + 1) // threads()
        ):
            batch, low = group // groups, group % groups * ROWS
            of_a, of_b = batch // words[1], batch // words[2]
            for tile in range(tiles):
                b = f64_at(words[7] + 8 * (of_b * tiles + tile) * terms * COLUMNS)
                for row in range(low, min(low + ROWS, rows)):
                    a = f32_at(words[6] + 4 * (of_a * rows + row) * terms)
                    line = (batch * tiles + tile) * rows + row
                    result = f64_at(words[8] + 8 * line * COLUMNS)
                    index = (batch * rows + row) * columns + tile * COLUMNS
                    if kind == SEQUENTIAL:
                        sequential(a, b, terms, words[10], work, keys, others, constants, index)
                    elif kind == ALIGNED:
                        unit(a, b, terms, words[10], words[12], work, tops, constants)
                    else:
                        saturated(a, b, terms, work, constants)
                    for j in range(COLUMNS):
                        result[j] = work[j]

    return kernel(body)
