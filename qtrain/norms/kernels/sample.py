"""What a deviation asks of a batch-norm's channels, read from the input's own memory."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.numbers import divided

from ..passes import centered_rows, flat_index
from ..samples import Cut, Extremes, Sample
from .memory import Layout, added, by_plane, statistics


class CompiledSample(Sample):
    """One read from x's own memory."""

    def __init__(self, x: Tensor, layout: Layout, mean: Tensor) -> None:
        self.x, self.layout, self.mean = x, layout, mean
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean
        self.count = x.numel() // layout.channels

    def rows(self) -> Tensor:
        return centered_rows(self.x, self.mean)

    def _mean(self, kind: int) -> Tensor | None:
        found = statistics(kind, self.x, self.layout, Cut(0, 1, self.count), 1, self.mean)
        return None if found is None else divided(added(found[0][0]), self.count)

    def ones(self) -> Tensor:
        return torch.ones_like(self.mean)

    def mean_square(self) -> Tensor:
        mean = self._mean(0)
        return super().mean_square() if mean is None else mean

    def mean_magnitude(self) -> Tensor:
        mean = self._mean(1)
        return super().mean_magnitude() if mean is None else mean

    def _first(self, values: Tensor, at: Tensor, each: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Of each chunk's blocks the best value (C, chunks) and the least of its indices."""
        values, at = (t.view(-1, each, *t.shape[1:]) for t in (values, at.view(torch.int32)))
        best = values.amax((1, 3)) if largest else values.amin((1, 3))
        index = torch.where(values == best[:, None, :, None], at, 2**31 - 1).amin((1, 3))
        return best.t(), index.t().long()

    def largest(self, k: int) -> Tensor:
        found = None
        if k == 1:
            found = statistics(2, self.x, self.layout, Cut(0, 1, self.count), 2, self.mean)
        if found is None:
            return super().largest(k)
        (values, at), each = found
        return self._first(values, at, each, largest=True)[1]

    def take(self, index: Tensor) -> Tensor:
        x = by_plane(self.x)
        chosen = x[flat_index(index, x.shape[2])].float()
        return chosen - self.mean.unsqueeze(1) + self.taint.unsqueeze(1)

    def extremes(self, cut: Cut) -> Extremes:
        found = statistics(3, self.x, self.layout, cut, 4, self.mean)
        if found is None:
            return super().extremes(cut)
        (high, high_at, low, low_at), each = found
        top, top_at = self._first(high, high_at, each, largest=True)
        bottom, bottom_at = self._first(low, low_at, each, largest=False)
        taint = self.taint.unsqueeze(1)
        return Extremes(top + taint, bottom + taint, top_at, bottom_at)
