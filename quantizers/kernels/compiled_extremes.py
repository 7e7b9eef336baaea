"""The smallest and the largest element of runs of adjacent ones."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .compiled import SOURCE_BYTES, f32, f32_at, i32, kernel, load, thread, threads
from .compiled_whole import number, ordered


def extremes(source: int) -> Any:
    """words: runs, elements of a run, and the addresses of x, of the smallest and the largest
    (fp32, one a run; NaN both, where a run has one)."""

    def body(data: Any) -> None:
        words = numba.carray(data, (5,), np.int64)
        runs, length = words[0], words[1]
        low, high = f32_at(words[3]), f32_at(words[4])
        for run in range(runs * thread() // threads(), runs * (thread() + 1) // threads()):
            x = words[2] + SOURCE_BYTES[source] * run * length
            smallest, largest = i32(0x7FFFFFFF), i32(-0x80000000)
            for i in range(length):
                v = ordered(load(source, x, i))
                smallest, largest = min(smallest, v), max(largest, v)
            one, other = number(smallest), number(largest)
            if one != one or other != other:
                one = other = f32(np.nan)
            low[run], high[run] = one, other

    return kernel(body)
