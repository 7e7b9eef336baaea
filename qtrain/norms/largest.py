"""The deviations that the largest magnitudes make: linf and topk, see `deviations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quantizers.ranges.rules import State

from ..checks import integer, number
from .constants import factor
from .estimate import Deviation, Estimate
from .samples import Sample


@dataclass(frozen=True, kw_only=True)
class Linf(Deviation):
    """Of equal magnitudes the first element, in (N, *S) order, carries the gradient."""

    name = "linf"
    constants = ("exact", "code")

    def of(self, sample: Sample) -> Estimate:
        k = self.carriers(sample.count)
        index = sample.largest(k)
        chosen = sample.take(index)
        one = factor(chosen, "largest", self.constant, sample.count, k) * self.times
        return Estimate(one * chosen.abs().mean(1), index, chosen.sign() * (one / k))

    def carriers(self, count: int) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class TopK(Linf):
    """Of magnitudes equal to the k-th, those that torch.topk picks carry the gradient; where a
    channel has fewer than k elements, k is their number."""

    name = "topk"
    k: int = 10
    smoothing: float = 0.0
    #: sigma (C,) of the batch before; None: 0
    before: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("topk.k", self.k, low=1)
        number("topk.smoothing", self.smoothing, low=0, high=1)

    def of(self, sample: Sample) -> Estimate:
        sigma, index, slope = super().of(sample)
        if not self.smoothing:
            return Estimate(sigma, index, slope)
        assert slope is not None
        own = 1 - self.smoothing
        sigma, slope = sigma * own, slope * own
        if self.before is not None:
            k = self.carriers(sample.count)
            one = factor(sigma, "largest", self.constant, sample.count, k) * self.times
            sigma = sigma + self.before.to(sigma.dtype) * (one * self.smoothing)
        return Estimate(sigma, index, slope)

    def init_state(self, shape: Sequence[int | None]) -> State:
        if not self.smoothing:
            return {}
        return {"sigma": torch.zeros([size or 1 for size in shape], dtype=torch.float32)}

    def after(self, state: State) -> Deviation:
        return replace(self, before=state["sigma"]) if state else self

    def carriers(self, count: int) -> int:
        return min(self.k, count)

    def __str__(self) -> str:
        smoothed = [f"smoothing={self.smoothing:g}"] if self.smoothing else []
        return self._named(str(self.k), self.constant, *smoothed)
