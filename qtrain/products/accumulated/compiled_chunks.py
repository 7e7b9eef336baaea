"""What follows the exact sum of a chunk, compiled: rounded, added to the sum before it."""

from __future__ import annotations

from typing import Any

from quantizers.kernels.compiled import f64, f64_at, i64_at, kernel, thread, threads

from .compiled_numbers import odd_sum, rounded


def added(mode: int, odd: int) -> Any:
    """total = R(total + R(chunk)), in place; words: how many, chunk, total (fp64), and the format's
    constants, as `compiled_numbers.rounded` takes them; odd: whether a sum that fp64 does not hold
    is rounded to odd before."""

    def body(data: Any) -> None:
        words = i64_at(data)
        count, chunk, total, given = words[0], f64_at(words[1]), f64_at(words[2]), f64_at(words[3])
        format = given[0], given[1], given[2], given[3], given[4]
        for i in range(count * thread() // threads(), count * (thread() + 1) // threads()):
            own = rounded(mode, chunk[i], 0.0, 0.0, format)
            both = odd_sum(total[i], own) if odd else f64(total[i] + own)
            total[i] = rounded(mode, both, 0.0, 0.0, format)

    return kernel(body)
