"""Scales of granules that are powers of two."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import f32, f32_at, f64, f64_at, i64, i64_at, kernel, thread, threads

#: bits behind the point of an fp64 number, all set
_ONES = (1 << 52) - 1


def powers() -> Any:
    """words: how many, emax, edge, the format's smallest exponent, and the addresses of amax and
    the scales (fp32); in fp64 headroom, the format's largest, and what lies beyond becomes."""

    def body(data: Any) -> None:
        words, numbers = i64_at(data), f64_at(data)
        size, emax, edge, lowest = words[0], words[1], words[2], words[3]
        headroom, largest, over = numbers[6], numbers[7], numbers[8]
        amax, scales = f32_at(words[4]), f32_at(words[5])
        for i in range(size * thread() // threads(), size * (thread() + 1) // threads()):
            x = amax[i]
            number = f64(f64(x) * headroom).view(np.int64)
            up = i64(1) if (number & i64(_ONES)) > edge else i64(0)
            exponent = (number >> i64(52)) - i64(1023) + up - emax
            exponent = min(max(exponent, lowest), i64(1023))
            found = i64((exponent + i64(1023)) << i64(52)).view(np.float64)
            found = over if found > largest else found
            scale = f32(found) if f32(abs(x)) < f32(np.inf) else f32(np.nan)
            scales[i] = f32(0.0) if x == f32(0.0) else scale

    return kernel(body)
