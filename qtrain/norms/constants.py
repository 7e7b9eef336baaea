"""The constants that turn a maximum or a range of n elements into a standard deviation.

The exact ones come from expectations of order statistics of n independent unit Gaussians, computed
by quadrature in float64.  torch.compile does not fix n: compiled for any number, a graph holds the
constant as an operation of that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantizers.devices.by_device import register

Constant = Literal["exact", "paper", "code"]

_Floats = NDArray[np.float64]


@lru_cache(maxsize=1)
def _nodes() -> tuple[_Floats, _Floats, _Floats]:
    """Points, weights and tails P(z > point) of the positive half line, cut where a tail is 0."""
    x, w = np.polynomial.legendre.leggauss(64)
    edges = np.linspace(0.0, 16.0, 17)
    half = np.diff(edges)[:, None] / 2
    points = (edges[:-1, None] + half * (x + 1)).ravel()
    tails = np.array([math.erfc(t / math.sqrt(2)) / 2 for t in points])
    return points, (half * w).ravel(), tails


@lru_cache(maxsize=4096)
def expected_range(n: int) -> float:
    """E[max - min] of n >= 2 unit Gaussians: the integral of 1 - F^n - (1 - F)^n over the line."""
    _, weights, tail = _nodes()
    outside = -np.expm1(n * np.log1p(-tail)) - tail**n
    return float(2 * (weights * outside).sum())


@lru_cache(maxsize=4096)
def expected_largest(n: int, k: int) -> float:
    """E[mean of the k largest |z|] of n >= k unit Gaussians.

    P(the j-th largest > t) = P(B >= j) for B binomial(n, P(|z| > t)), so the sum of the k largest
    is the integral over t of E[min(B, k)] = k - sum over b < k of (k - b) P(B = b).
    """
    _, weights, tail = _nodes()
    log_p, log_q = np.log(2 * tail), np.log1p(-2 * tail)
    log_choose = 0.0
    missing = np.zeros_like(tail)
    for b in range(k):
        missing += (k - b) * np.exp(log_choose + b * log_p + (n - b) * log_q)
        log_choose += math.log(n - b) - math.log(b + 1)
    return float((weights * (k - missing)).sum() / k)


def largest_factor(constant: Constant, n: int, k: int) -> float:
    """c(n) for the mean of the k largest magnitudes of n elements: "exact" or "code"."""
    if constant == "exact":
        return 1 / expected_largest(n, k)
    # mean of the inverses of two bounds on E max, sqrt(2 ln n) and sqrt(2 ln n) / sqrt(pi ln 4);
    # the code takes it for the k largest too
    return 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))


def range_factor(constant: Constant, n: int) -> float:
    """c(n) for the range of n >= 2 elements."""
    if constant == "exact":
        return 1 / expected_range(n)
    if constant == "paper":
        return 1 / math.sqrt(2 * math.log(n))
    # as the code has it, with no derivation given
    return (0.5 * 0.35) * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))


_FACTORS: dict[str, Callable[..., float]] = {"largest": largest_factor, "range": range_factor}


def factor(like: Tensor, name: str, constant: str, *sizes: int) -> float | Tensor:
    """`largest_factor` or `range_factor` of these sizes; fp64 (), on the device of `like`, where
    they may be symbols.  Either way the same bits come of a product with an fp32 tensor."""
    if torch.compiler.is_compiling() or any(isinstance(size, torch.SymInt) for size in sizes):
        traced: Tensor = torch.ops.qtrain.deviation_factor(like, name, constant, sizes)
        return traced
    return _FACTORS[name](constant, *sizes)


def filled(like: Tensor, value: float | Tensor) -> Tensor:
    """A tensor like another, full of one value."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).expand(like.shape)
    return torch.full_like(like, value)


def _factor(like: Tensor, name: str, constant: str, sizes: Sequence[int]) -> Tensor:
    return like.new_full((), _FACTORS[name](constant, *sizes), dtype=torch.float64)


def _fake(like: Tensor, name: str, constant: str, sizes: Sequence[int]) -> Tensor:
    return like.new_empty((), dtype=torch.float64)


register(
    "qtrain::deviation_factor(Tensor like, str name, str constant, SymInt[] sizes) -> Tensor",
    _factor, _fake, "CompositeExplicitAutograd",
)  # fmt: skip
