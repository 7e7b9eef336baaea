"""What a Monitor knows of a tensor besides its error: codes, scales, rounding, channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quantizers import QTensor

from .channel_peaks import outlier
from .histograms import code_counts, value_counts
from .rounding_errors import Rounded, rounded, shared_noise
from .sampling import chosen, sampled
from .weight_watch import WeightWatch


@dataclass
class Detail:
    """What is known of one role over every call of a layer.

    values     counts in the bins of `value_counts`, of the tensor before it was quantized
    codes      counts in the bins of `code_counts`; None for a product
    scales     (smallest, median, largest) scale of the granules of each call; of two that a median
               lies between, the lower
    roundings, shared, outliers   of each call: see `rounded`, `shared_noise`, `outlier`
    weight     of a weight: what its elements do from here on; None for all else
    """

    values: Tensor | None = None
    codes: Tensor | None = None
    scales: list[tuple[float, float, float]] = field(default_factory=list)
    roundings: list[Rounded] = field(default_factory=list)
    shared: list[list[float]] = field(default_factory=list)
    outliers: list[float] = field(default_factory=list)
    weight: WeightWatch | None = None

    def add(self, x: Tensor, q: Tensor | QTensor) -> None:
        """A sample of a tensor and of what became of it."""
        self.values = _sum(self.values, value_counts(x))
        if isinstance(q, QTensor):
            self.codes = _sum(self.codes, code_counts(q))

    def add_operand(self, x: Tensor, q: QTensor, limit: int, channel_axis: int) -> None:
        """A whole operand, of which `limit` elements are looked at."""
        if q.scale is not None:
            ordered = q.scale.detach().flatten().sort().values
            middle = (ordered.numel() - 1) // 2
            low, median, high = ordered[[0, middle, -1]].tolist()
            self.scales.append((low, median, high))
        sample, part = sampled(x, q, limit=limit)
        assert isinstance(sample, Tensor) and isinstance(part, QTensor)
        found = rounded(sample, part)
        if found is not None:
            self.roundings.append(found)
        shared = shared_noise(x, q)
        if shared is not None:
            self.shared.append(shared)
        peak = outlier(sample, part, chosen(x, limit), x.shape, channel_axis)
        if peak is not None:
            self.outliers.append(peak)

    @property
    def scale(self) -> tuple[float, float, float] | None:
        """The smallest scale of all calls, the mean of their medians, the largest."""
        if not self.scales:
            return None
        lows, medians, highs = zip(*self.scales, strict=True)
        return min(lows), sum(medians) / len(medians), max(highs)

    def figures(self) -> dict[str, float | int | None]:
        """The fields of a `MonitorRow` that are numbers of this tensor: the mean over the calls of
        what errors average, the largest of what they do not."""
        reaches = [r.reach for r in self.roundings if r.reach is not None]
        calls = len(self.roundings)
        errors = [r.offset_error**2 for r in self.roundings]
        along = [_mean(axis) for axis in zip(*self.shared, strict=False)]
        worst = max(range(len(along)), key=along.__getitem__) if along else None
        return {
            "offset": _mean([r.offset for r in self.roundings]) if calls else None,
            "offset_error": sum(errors) ** 0.5 / calls if calls else None,
            "spread": _mean([r.spread**2 for r in self.roundings]) ** 0.5 if calls else None,
            "reach": max(reaches) if reaches else None,
            "shared": None if worst is None else along[worst],
            "axis": worst,
            "outlier": max(self.outliers) if self.outliers else None,
            "update": None if self.weight is None else self.weight.update(),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
