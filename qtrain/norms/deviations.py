"""Deviations: estimates of a channel's standard deviation, and their gradients.

    l2()       sqrt(mean (x - mean)^2), torch's own
    l1()       c * mean |x - mean|                           c = sqrt(pi / 2)
    linf()     c(n) * max |x - mean|
    topk(k)    c(n) * mean of the k largest |x - mean|; with smoothing b
               c(n) * (b * sigma of the batch before + (1 - b) * that mean)
    range_(K)  mean over K chunks of c(n) * (max - min)      n: elements of the chunk
    none()     1: the norm subtracts the mean and nothing else

`constant` names c.  "exact" is 1 / E[statistic of n unit Gaussians], so that the estimate is 1 on
average at every n (for l2, its square is).  "paper" is the constant as published (Banner et al.
2018, arXiv:1805.11046, for range; Hoffer et al. 2018, arXiv:1803.01814, eq. 5, for l1), "code"
that of the papers' public code; a deviation that has no such constant refuses it.  The
expectation is about the Gaussians' own mean; about the mean of the n elements themselves, the
estimates other than range are low by about 1 / (2 n), relatively, as torch's biased variance is.

`times` multiplies c, in all but none, and with it sigma and its gradient (Hoffer et al. 2018,
section 4.1, train with the l1 constant at 1/4, 1 and 4 times).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import choice, integer
from .constants import Constant as Constant
from .constants import factor, filled, range_factor
from .estimate import Deviation as Deviation
from .estimate import Estimate as Estimate
from .estimate import Measure
from .largest import Linf, TopK
from .samples import Extremes, Sample, cuts


@dataclass(frozen=True, kw_only=True)
class _L2(Deviation):
    name = "l2"
    dense = "centered"

    def of(self, sample: Sample) -> Estimate:
        root = sample.mean_square().sqrt()
        return Estimate(root if self.times == 1 else root * self.times)

    def measured(self, count: int) -> Measure:
        return Measure("squares", self.times)

    def stabilized(self, sigma: Tensor, eps: float) -> Tensor:
        """sqrt(sigma^2 + eps), torch's."""
        return (sigma.square() + eps).sqrt()

    def dense_factor(self, divisor: Tensor, count: int) -> Tensor:
        return self.times * self.times / (divisor * count)

    def __str__(self) -> str:
        return self._named()


@dataclass(frozen=True, kw_only=True)
class _L1(Deviation):
    name = "l1"
    constants = ("exact", "paper")
    dense = "sign"

    def of(self, sample: Sample) -> Estimate:
        return Estimate(self._factor * sample.mean_magnitude())

    def measured(self, count: int) -> Measure:
        return Measure("magnitudes", self._factor)

    def dense_factor(self, divisor: Tensor, count: int) -> Tensor:
        return torch.full_like(divisor, self._factor / count)

    @property
    def _factor(self) -> float:
        # E|N(0, sigma^2)| = sigma sqrt(2 / pi): the paper's constant is exact at every n
        return self.times * math.sqrt(math.pi / 2)


@dataclass(frozen=True, kw_only=True)
class _Range(Deviation):
    """Chunks are runs of consecutive elements in (N, *S) order, of sizes that differ by one at
    most; each has two elements or more, so small batches have fewer chunks than asked for.  Of
    equal extremes in a chunk, the first carries the gradient."""

    name = "range"
    constants = ("exact", "paper", "code")
    names_extremes = True
    chunks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("range.chunks", self.chunks, low=1)

    def of(self, sample: Sample) -> Estimate:
        chunks = self._chunks(sample.count)
        sigmas, indices, slopes = [], [], []
        for part in cuts(sample.count, chunks):
            found: Extremes = sample.extremes(part)
            one = factor(found.high, "range", self.constant, part.length)
            one = self.times * one / chunks
            sigmas.append(one * (found.high - found.low).sum(1))
            indices += [found.high_at, found.low_at]
            slope = filled(found.high, one)
            slopes += [slope, -slope]
        sigma = sigmas[0] if len(sigmas) == 1 else sigmas[0] + sigmas[1]
        return Estimate(sigma, torch.cat(indices, 1), torch.cat(slopes, 1))

    def measured(self, count: int) -> Measure:
        chunks = self._chunks(count)
        size, longer = count // chunks, count % chunks
        factors = [self.times * range_factor(self.constant, n) / chunks for n in (size, size + 1)]
        return Measure("extremes", factors[0], chunks, size, longer, factors[1])

    def carriers(self, count: int) -> int:
        return 2 * self._chunks(count)

    def _chunks(self, count: int) -> int:
        return min(self.chunks, count // 2)

    def __str__(self) -> str:
        return self._named(f"chunks={self.chunks}", self.constant)


@dataclass(frozen=True, kw_only=True)
class _None(Deviation):
    """Mean-only batch-norm: the divisor is 1, and the norm's scale is not trained."""

    name = "none"

    def of(self, sample: Sample) -> Estimate:
        return Estimate(sample.ones())

    def measured(self, count: int) -> Measure:
        return Measure("ones")

    def stabilized(self, sigma: Tensor, eps: float) -> Tensor:
        """1, whatever the running value was before."""
        return torch.ones_like(sigma)

    def __str__(self) -> str:
        return self.name


def l2(*, times: float = 1.0) -> Deviation:
    """The root mean square, torch's own."""
    return _L2(times=times)


def l1(constant: Constant = "exact", *, times: float = 1.0) -> Deviation:
    """The mean magnitude."""
    return _L1(constant=constant, times=times)


def linf(constant: Constant = "exact", *, times: float = 1.0) -> Deviation:
    """The largest magnitude."""
    return Linf(constant=constant, times=times)


def topk(
    k: int = 10, constant: Constant = "exact", *, times: float = 1.0, smoothing: float = 0.0
) -> Deviation:
    """The mean of the k largest magnitudes; smoothing: from 0, below 1.

    topk(10, "code", smoothing=0.75) is the class that the code of Hoffer et al. 2018 calls "Top10"
    (GhostTopkBatchNorm2d of norm_matters 3b103aa, models/lp_norm.py).  What it remembers has the
    constant in it already: sigma begins at a quarter of that without smoothing, and settles at
    (1 - b) / (1 - b c(n)) of it, a third at the paper's sizes.  No gradient flows into the batches
    before.  Of a batch-norm alone: rows of other norms have none.
    """
    return TopK(k=k, constant=constant, times=times, smoothing=smoothing)


def range_(chunks: int = 1, constant: Constant = "exact", *, times: float = 1.0) -> Deviation:
    """The range, max - min, averaged over chunks.  (The papers' code: 16 chunks.)"""
    return _Range(chunks=chunks, constant=constant, times=times)


def none() -> Deviation:
    """1: mean-only batch-norm (Salimans and Kingma 2016, arXiv 1602.07868), for layers whose
    weights have a set norm; a converted norm's scale stays what it is, its bias is learned."""
    return _None()


_NAMED: dict[str, Callable[[], Deviation]] = {
    made.__name__.strip("_"): made for made in (l2, l1, linf, topk, range_, none)
}


def names() -> list[str]:
    """The names `get` knows."""
    return list(_NAMED)


def get(name: str) -> Deviation:
    """A deviation with its default settings by name; ValueError names the nearest."""
    return _NAMED[choice("deviation", name, _NAMED)]()
