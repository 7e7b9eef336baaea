"""What a Monitor knows of a tensor besides its error: codes, scales, rounding, channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from quantizers import QTensor

from .distributions import Channels, channels, code_counts, value_counts
from .pair import TensorPair, in_steps
from .rounding import Rounded, Shared, rounded, shared_noise
from .weight_watch import WeightWatch


@dataclass
class Detail:
    """What is known of one role over every call of a layer.

    values     counts in the bins of `value_counts`, of the tensor before it was quantized
    codes      counts in the bins of `code_counts`; None for a product
    scales     (smallest, median, largest) scale of the granules of each call; of two that a median
               lies between, the lower
    roundings, shared, channels   of each call that has one: see `rounded`, `shared_noise` (where
               it rounds with noise), `channels`
    weight     of a weight: what its elements do from here on; None for all else
    """

    values: Tensor | None = None
    codes: Tensor | None = None
    scales: list[tuple[float, float, float]] = field(default_factory=list)
    roundings: list[Rounded] = field(default_factory=list)
    shared: list[list[Shared]] = field(default_factory=list)
    channels: list[Channels] = field(default_factory=list)
    weight: WeightWatch | None = None

    def add(self, pair: TensorPair, *, quantized: bool) -> None:
        """A sample of a tensor and of what became of it."""
        self.values = _sum(self.values, value_counts(pair.x))
        if quantized:
            self.codes = _sum(self.codes, code_counts(pair.q))
            found = rounded(pair)
            if found is not None:
                self.roundings.append(found)

    def add_whole(self, x: Tensor, q: QTensor, channel_axis: int) -> None:
        """A whole operand, a sample of which was added."""
        if q.scale is not None:
            scale = q.scale.detach() if q.outer is None else q.scale.detach() * q.outer.detach()
            ordered = scale.flatten().sort().values
            middle = (ordered.numel() - 1) // 2
            low, median, high = ordered[[0, middle, -1]].tolist()
            self.scales.append((low, median, high))
        if q.format is None or x.numel() == 0:
            return
        if in_steps(q) and self.roundings[-1].noisy:
            self.shared.append(shared_noise(x.detach(), q))
        own = channels(x, q, channel_axis)
        if own is not None:
            self.channels.append(own)

    @property
    def scale(self) -> tuple[float, float, float] | None:
        """The smallest scale of all calls, the mean of their medians, the largest."""
        if not self.scales:
            return None
        lows, medians, highs = zip(*self.scales, strict=True)
        return min(lows), mean(medians), max(highs)

    @property
    def noise(self) -> tuple[int, float, float] | tuple[None, None, None]:
        """The axis along which the rounding's noise is most alike, its mean correlation over the
        calls there, and that mean's standard error; of what rounds without noise there is none."""
        along = [
            (mean([s.correlation for s in calls]), error_of_mean([s.error for s in calls]))
            for calls in zip(*self.shared, strict=True)
        ]
        if not along:
            return None, None, None
        axis = max(range(len(along)), key=lambda axis: along[axis][0] - 3 * along[axis][1])
        return axis, *along[axis]


def mean(values: Sequence[float]) -> float:
    """The mean of measured values."""
    return sum(values) / len(values)


def error_of_mean(errors: Sequence[float]) -> float:
    """The standard error of the mean of values that have these, and are independent."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
