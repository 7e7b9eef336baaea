"""Intervals for paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from torch import Tensor

from .student import quantile

#: 97.5 % quantile of the standard normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval, and from how many pairs by which method."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def accuracy_gap(first: Tensor, second: Tensor) -> Interval:
    """Accuracy of `second` minus that of `first` on the same samples; both (N,) or (N, T) bool.

    (N,): the interval is Agresti and Min's (2005): half a sample is added to each of the four
    cells, so it does not shrink to nothing where the two agree on every sample.  (N, T), N windows
    of T tokens: those of a window depend on one another, so windows, taken to be independent, are
    paired by their mean accuracies as in `mean_difference`, from two windows up.  Lest windows that
    all differ alike leave no doubt, their squared deviations are summed with those of four tokens
    (two each way, as Agresti and Coull 1998 add to one sample), (1 / T)^2 each: hardly felt where
    windows vary by more than a token, and where none differs the gap is within about 4 tokens in
    N T.  That floor is for lone tokens: of rare windows that differ in many, windows all alike tell
    nothing.  ValueError for other shapes.
    """
    if first.shape != second.shape or first.ndim not in (1, 2) or first.numel() == 0:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"got {got}, need both (N,) or both (N, T)")
    if first.ndim == 2:
        a, b = (right.double().mean(1).tolist() for right in (first, second))
        floor = 4 / first.shape[1] ** 2
        found = _paired(a, b, over="test windows", floor=floor)
        return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))
    n = len(first)
    gained = int((second & ~first).sum())
    lost = int((first & ~second).sum())
    pairs, up, down = n + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / pairs
    deviation = math.sqrt(up + down - (up - down) ** 2 / pairs) / pairs
    return Interval(
        value=(gained - lost) / n,
        low=max(centre - _Z * deviation, -1.0),
        high=min(centre + _Z * deviation, 1.0),
        n=n,
        method="paired over test samples, Agresti-Min",
    )


def mean_difference(
    first: Sequence[float], second: Sequence[float], *, over: str = "seeds"
) -> Interval:
    """Mean of second - first over pairs (one per seed, or of what `over` says), with Student's t.

    ValueError below two pairs.
    """
    return _paired(first, second, over=over, floor=0.0)


def _paired(
    first: Sequence[float], second: Sequence[float], *, over: str, floor: float
) -> Interval:
    """`mean_difference`, with `floor` added to the sum of squared deviations."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"got {len(first)} and {len(second)} values, need two pairs or more")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences)
    mean = fmean(differences)
    half = quantile(0.95, n - 1) * math.sqrt((variance(differences) + floor / (n - 1)) / n)
    method = f"paired over {over}, Student t"
    return Interval(value=mean, low=mean - half, high=mean + half, n=n, method=method)
