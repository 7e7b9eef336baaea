"""Sums in blocks, compiled as the fused quantizers are: see `sums`.

Outputs are innermost: four rows and a tile of columns at a time, whose sums stay in the nearest
cache while a block's terms are added to them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from quantizers.kernels.compiled import f32, f32_at, function, kernel, pointer, thread, threads

f64 = np.float64
f64_at = pointer(types.float64)
#: rows that are summed together
ROWS = 4

#: products in a sum are exact, or are rounded with it: one instruction for both
_added = numba.njit(error_model="numpy", boundscheck=False, fastmath={"contract"})


@function
def once(scale: Any) -> Any:
    """The product of two fp32 numbers, exact in fp64, to 24 significant bits, ties to even."""
    size = abs(scale)
    lift = f64(2.0**200) if size < f64(2.0**-100) else f64(1.0)
    lift = f64(2.0**-200) if size > f64(2.0**100) else lift
    return f64(f32(scale * lift)) / lift


def sums(wide: int, COLUMNS: int) -> Any:
    """result[i, j] += fl32(S) * fl24(scale_a[i] * scale_b[j]) of every block, in order.

    wide: whether S is taken in fp64, else in fp32; COLUMNS: of a tile.
    words: batches; result's batches that share one of a, one of b; rows (a multiple of ROWS),
    columns (a multiple of COLUMNS), terms, terms of a block, then the addresses of a (fp32, (batch,
    rows, terms)), b (fp64 or fp32, (batch, columns / COLUMNS, terms, COLUMNS)), scales of a (fp32,
    (batch, blocks, rows)) and of b (fp32, (batch, blocks, columns)), and of the result (fp32,
    (batch, columns / COLUMNS, rows, COLUMNS), zeros).
    """
    real, real_at = (f64, f64_at) if wide else (f32, f32_at)
    real_type = types.float64 if wide else types.float32
    tile_size = ROWS * COLUMNS

    @_added
    def added(a: Any, first: Any, b: Any, total: Any, terms: Any, length: Any) -> None:
        """total: (ROWS, COLUMNS), the sums of `length` terms from four rows that lie `terms`
        apart."""
        for j in range(tile_size):
            total[j] = real(0.0)
        one, two, three = first + terms, first + 2 * terms, first + 3 * terms
        for k in range(0, length - 1, 2):
            p0, p1 = real(a[first + k]), real(a[one + k])
            p2, p3 = real(a[two + k]), real(a[three + k])
            q0, q1 = real(a[first + k + 1]), real(a[one + k + 1])
            q2, q3 = real(a[two + k + 1]), real(a[three + k + 1])
            place = k * COLUMNS
            for j in range(COLUMNS):
                v, w = b[place + j], b[place + COLUMNS + j]
                total[j] += p0 * v + q0 * w
                total[COLUMNS + j] += p1 * v + q1 * w
                total[2 * COLUMNS + j] += p2 * v + q2 * w
                total[3 * COLUMNS + j] += p3 * v + q3 * w
        if length % 2:
            k = length - 1
            for j in range(COLUMNS):
                v = b[k * COLUMNS + j]
                total[j] += real(a[first + k]) * v
                total[COLUMNS + j] += real(a[one + k]) * v
                total[2 * COLUMNS + j] += real(a[two + k]) * v
                total[3 * COLUMNS + j] += real(a[three + k]) * v

    @function
    def finished(total: Any, scale: Any, others: Any, result: Any) -> None:
        """result += fl32(total) * fl24(scale * others), a row of a tile."""
        for j in range(COLUMNS):
            exact = f64(f32(total[j])) * once(f64(scale) * f64(others[j]))
            result[j] += f32(exact)

    def body(data: Any) -> None:
        words = numba.carray(data, (12,), np.int64)
        batches, share_a, share_b = words[0], words[1], words[2]
        rows, columns, terms, step = words[3], words[4], words[5], words[6]
        a = f32_at(words[7])
        blocks, tiles, groups = -(-terms // step), columns // COLUMNS, rows // ROWS
        start = batches * groups * thread() // threads()
        stop = batches * groups * (thread() + 1) // threads()
        total = np.empty(tile_size, real_type)
        while start < stop:
            batch = start // groups
            end = min(stop, (batch + 1) * groups)
            of_a, of_b = batch // share_a, batch // share_b
            for tile in range(tiles):
                for block in range(blocks):
                    low = block * step
                    length = min(step, terms - low)
                    width = 8 if wide else 4
                    place = ((of_b * tiles + tile) * terms + low) * COLUMNS
                    b = real_at(words[8] + width * place)
                    others = f32_at(
                        words[10] + 4 * ((of_b * blocks + block) * columns + tile * COLUMNS)
                    )
                    scales = f32_at(words[9] + 4 * (of_a * blocks + block) * rows)
                    for group in range(start - batch * groups, end - batch * groups):
                        first = group * ROWS
                        added(a, (of_a * rows + first) * terms + low, b, total, terms, length)
                        for row in range(ROWS):
                            place = ((batch * tiles + tile) * rows + first + row) * COLUMNS
                            finished(
                                total[row * COLUMNS :], scales[first + row], others,
                                f32_at(words[11] + 4 * place),
                            )  # fmt: skip
            start = end

    return kernel(body)
