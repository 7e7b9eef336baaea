"""Exact statistics of counts: Clopper and Pearson's interval, McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Callable


def interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The share count / n with its two-sided interval of at least `level` (Clopper and Pearson
    1934, Biometrika 26: 404): each end is the share at which so extreme a count has a probability
    of (1 - level) / 2.  (0, 1) of nothing.
    """
    if not 0 <= count <= n:
        raise ValueError(f"count: got {count} of {n}, need 0 to n")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else _root(lambda p: at_least(count, n, p) < tail)
    high = 1.0 if count == n else _root(lambda p: 1 - at_least(count + 1, n, p) > tail)
    return low, high


def at_least(count: int, n: int, p: float) -> float:
    """P(X >= count) of a binomial count X of n with probability p."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count, n + 1))


def mcnemar(first: int, second: int) -> float:
    """Two-sided p of no difference between two that judge the same cases: `first` cases that the
    one alone got right, `second` the other alone (McNemar 1947, by the binomial, not chi^2)."""
    n = first + second
    return min(1.0, 2 * at_least(max(first, second), n, 0.5)) if n else 1.0


def share(count: int, n: int) -> str:
    """ "36 of 40, 90 % [76, 97]"."""
    low, high = (100 * end for end in interval(count, n))
    return f"{count} of {n}, {100 * count / max(n, 1):.0f} % [{low:.0f}, {high:.0f}]"


def _root(below: Callable[[float], bool]) -> float:
    """Where `below` turns from true to false, by halving: to the last bit."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return middle
