"""The epilogue of integer sums, compiled as the fused quantizers are."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantizers.kernels.compiled import f32, f32_at, i32, i32_at, kernel, thread, threads


def finish() -> Any:
    """fl32(sum - shift) * scale + bias in place of int32 sums: rows of adjacent channels.

    words: rows, channels, sums, rows that share a shift, then shift (int32), scale, bias (fp32).
    """

    def body(data: Any) -> None:
        words = numba.carray(data, (7,), np.int64)
        rows, channels, each = words[0], words[1], words[3]
        sums, values = i32_at(words[2]), f32_at(words[2])
        shifts, scale, bias = i32_at(words[4]), f32_at(words[5]), f32_at(words[6])
        for row in range(rows * thread() // threads(), rows * (thread() + 1) // threads()):
            place, shared = row * channels, row // each * channels
            for c in range(channels):
                exact = i32(sums[place + c] - shifts[shared + c])
                values[place + c] = f32(f32(exact) * scale[c]) + bias[c]

    return kernel(body)
