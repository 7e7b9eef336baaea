"""Sums of accumulators, compiled: what `quantizers.accumulate` gives, bit for bit.

Outputs are innermost: a row's terms one after the other, each added to a tile of columns at once,
in fp64, where products of two fp32 numbers are exact and a sum is rounded to odd before it is
rounded to its format.  Some rows meet a block of a tile's terms, transposed, while both lie in a
cache; their sums wait for the next.
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

#: kinds of accumulators, columns of a tile, terms of a block (of whole groups of a unit)
SEQUENTIAL, ALIGNED, SATURATED = 0, 1, 2
COLUMNS, TERMS = 64, 128
#: what a row's sums take
WORK = 4 * COLUMNS


def sums(kind: int, mode: int, odd: int, product: int, compensated: int) -> Any:
    """result[i, j] of matrices a (i, k) and b (j, k), by an accumulator; numbers as in `sums.py`.

    odd: whether a sum in fp64 may be inexact in a way that its rounding sees.  words:

    0  batches; 1, 2  those that share one of a, one of b; 3  rows; 4  columns; 5  terms
    6  a (fp32, (batch, rows, terms)); 7  b (fp32, (batch, columns, terms)); 8  the result (fp64)
    9  rows that meet a block together
    10 chunk, or terms of a unit; 11  keys (int64), of the additions; 12  a unit's promotion
    13 constants (fp64): format, format of the products, random bits' share, then of a unit
    14 keys of the products; 15, 16  from a row, a column of the result to the next; batches of
       rows x columns follow one another
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
        a: Any, b: Any, first: Any, last: Any, terms: Any, chunk: Any, work: Any, keys: Any,
        others: Any, constants: Any, index: Any, step: Any, width: Any,
    ) -> None:  # fmt: skip
        """work: (4, COLUMNS): the sum, its lost part, a chunk's, and that one's; width: how many
        columns to compute."""
        format = constants[0], constants[1], constants[2], constants[3], constants[4]
        narrow = constants[5], constants[6], constants[7], constants[8], constants[9]
        share, at = constants[10], i64(0) if chunk == 0 else i64(2 * COLUMNS)
        for k in range(first, last):
            left, place = f64(a[k]), (k - first) * COLUMNS
            for j in range(width):
                term = f64(left * b[place + j])
                if product:
                    draw = draw_of(others, k, index + j * step, share)
                    term = rounded(mode, term, draw, share, narrow)
                draw = draw_of(keys, k, index + j * step, share)
                own = at + j
                work[own], work[own + COLUMNS] = add(
                    work[own], work[own + COLUMNS], term, draw, share, format
                )
            if chunk != 0 and ((k + 1) % chunk == 0 or k + 1 == terms):
                number = terms + k // chunk
                for j in range(width):
                    draw = draw_of(keys, number, index + j * step, share)
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
        a: Any, b: Any, first: Any, last: Any, terms: Any, each: Any, promote: Any, work: Any,
        tops: Any, constants: Any, width: Any,
    ) -> None:  # fmt: skip
        """work: (4, COLUMNS): the result, then of a group the sum before it and its own."""
        outer, total, group = work[:COLUMNS], work[COLUMNS : 2 * COLUMNS], work[2 * COLUMNS :]
        of_a, of_b, bits = i64(constants[11]), i64(constants[12]), i64(constants[13])
        wide = constants[5], constants[6], constants[7], constants[8], constants[9]
        low = first
        while low < last:
            high = min(low + each, last)
            for j in range(width):
                tops[j] = exponent(total[j], i64(-126))
            for k in range(low, high):
                own = exponent(f64(a[k]), of_a)
                for j in range(width):
                    tops[j] = max(tops[j], own + exponent(b[(k - first) * COLUMNS + j], of_b))
            for j in range(width):
                tops[j] = min(tops[j], i64(300))  # an infinite term's is no exponent
                up = number_of((i64(1023) + bits - tops[j]) << i64(52))
                group[j] = f64(np.trunc(f64(total[j] * up)) + 0.0)  # no sum is -0
            for k in range(low, high):
                left = f64(a[k])
                for j in range(width):
                    up = number_of((i64(1023) + bits - tops[j]) << i64(52))
                    group[j] += f64(np.trunc(f64(f64(left * b[(k - first) * COLUMNS + j]) * up)))
            for j in range(width):
                found = f64(group[j] * number_of((i64(1023) - bits + tops[j]) << i64(52)))
                total[j] = rounded(1, found, 0.0, 0.0, constants)
            done = high == terms or (promote != 0 and high % promote == 0)
            if done:
                for j in range(width):
                    if promote != 0:
                        outer[j] = rounded(0, odd_sum(outer[j], total[j]), 0.0, 0.0, wide)
                        total[j] = 0.0
                    else:
                        outer[j] = total[j]
            low = high

    @function
    def saturated(
        a: Any, b: Any, first: Any, last: Any, work: Any, constants: Any, width: Any
    ) -> None:
        low, high = constants[0], constants[1]
        for k in range(first, last):
            left, place = f64(a[k]), (k - first) * COLUMNS
            for j in range(width):
                total = f64(work[j] + f64(left * b[place + j]))
                work[j] = min(max(total, low), high)

    @function
    def transpose(b: Any, terms: Any, columns: Any, first: Any, last: Any, block: Any) -> None:
        """block[k, j] = b[j, k] of these terms and so many columns."""
        low = first
        while low < last:
            high = min(low + 16, last)  # a line of a cache
            for j in range(columns):
                for k in range(low, high):
                    block[(k - first) * COLUMNS + j] = f64(b[j * terms + k])
            low = high

    def body(data: Any) -> None:
        words = i64_at(data)
        rows, columns, terms, together = words[3], words[4], words[5], words[9]
        constants = f64_at(words[13])
        keys, others = i64_at(words[11]), i64_at(words[14])
        size = TERMS if kind != ALIGNED else max(TERMS // words[10], 1) * words[10]
        work, tops = np.empty(together * WORK, np.float64), np.empty(COLUMNS, np.int64)
        block = np.zeros(size * COLUMNS, np.float64)  # beyond the last column: any number
        tiles, groups = -(-columns // COLUMNS), -(-rows // together)
        units = words[0] * tiles * groups
        for own in range(units * thread() // threads(), units * (thread() + 1) // threads()):
            batch, tile, low = own // (groups * tiles), own // groups % tiles, own % groups
            low, left = low * together, tile * COLUMNS
            high, right = min(low + together, rows), min(left + COLUMNS, columns)
            b = f32_at(words[7] + 4 * (batch // words[2] * columns + left) * terms)
            place = batch * rows * columns + left * words[16]
            width = -(-(right - left) // 16) * 16
            for i in range((high - low) * WORK):
                work[i] = 0.0
            first = i64(0)
            while first < terms:
                last = min(first + size, terms)
                transpose(b, terms, right - left, first, last, block)
                for row in range(low, high):
                    a = f32_at(words[6] + 4 * (batch // words[1] * rows + row) * terms)
                    sums = work[(row - low) * WORK : (row - low + 1) * WORK]
                    if kind == SEQUENTIAL:
                        sequential(
                            a, block, first, last, terms, words[10], sums, keys, others, constants,
                            place + row * words[15], words[16], width,
                        )  # fmt: skip
                    elif kind == ALIGNED:
                        unit(
                            a, block, first, last, terms, words[10], words[12], sums, tops,
                            constants, width,
                        )  # fmt: skip
                    else:
                        saturated(a, block, first, last, sums, constants, width)
                first = last
            result = f64_at(words[8])
            for row in range(low, high):
                for j in range(right - left):
                    found = work[(row - low) * WORK + j]
                    result[place + row * words[15] + j * words[16]] = found

    return kernel(body)
