"""The smallest and the largest element of blocks of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import SOURCE_BYTES, f32, f32_at, i32, i64_at, kernel, load, thread, threads
from .compiled_whole import number, ordered


def extremes(source: int) -> Any:
    """words: matrices, rows, terms of a row, rows and terms of a block (the last ones may be
    shorter); the addresses of x and of the smallest and the largest (fp32, one a block; NaN both,
    where a block has one)."""

    def body(data: Any) -> None:
        words = i64_at(data)
        rows, terms, across, step = words[1], words[2], words[3], words[4]
        groups, own = -(-rows // across), -(-terms // step)
        low, high = f32_at(words[6]), f32_at(words[7])
        blocks = words[0] * groups * own
        at, last = blocks * thread() // threads(), blocks * (thread() + 1) // threads()
        while at < last:
            group, block = at // own % groups, at % own
            row = at // own // groups * rows + group * across
            many = min(across, rows - group * across)
            for _ in range(min(own - block, last - at)):
                length = min(step, terms - block * step)
                smallest, largest = i32(0x7FFFFFFF), i32(-0x80000000)
                for r in range(row, row + many):
                    x = words[5] + SOURCE_BYTES[source] * (r * terms + block * step)
                    for i in range(length):
                        v = ordered(load(source, x, i))
                        smallest, largest = min(smallest, v), max(largest, v)
                one, other = number(smallest), number(largest)
                if one != one or other != other:
                    one = other = f32(np.nan)
                low[at], high[at] = one, other
                block, at = block + 1, at + 1

    return kernel(body)
