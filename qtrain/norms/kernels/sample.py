"""What a deviation asks of a batch-norm's channels, read from the input's own memory."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.serving import SOURCES
from quantizers.numbers import divided

from ..passes import flat_index, rows
from ..samples import Cut, Extremes, Sample
from .memory import Layout, added, by_plane, in_blocks, made, run


class CompiledSample:
    """A Sample read from x's own memory."""

    def __init__(self, x: Tensor, layout: Layout, mean: Tensor) -> None:
        self.x, self.layout, self.mean = x, layout, mean
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean
        self.count = x.numel() // layout.channels

    def _torch(self) -> Sample:
        return rows(self.x, self.mean)

    def _statistics(self, kind: int, cut: Cut) -> tuple[list[Tensor], int] | None:
        planes, _, width, channels = self.layout
        kernel = made("statistics", SOURCES[self.x.dtype], kind, planes)
        if kernel is None:
            return None
        blocks = in_blocks(planes, width, cut)
        out = [blocks.partial(self.mean) for _ in range(5)]  # total, high, its index, low, its
        out[2], out[4] = out[2].view(torch.int32), out[4].view(torch.int32)
        run(
            kernel, self.x.numel(), channels, width, blocks.lanes, self.x, blocks.starts,
            len(out[0]), *out, self.mean,
        )  # fmt: skip
        return out, blocks.each

    def _mean(self, kind: int) -> Tensor | None:
        found = self._statistics(kind, Cut(0, 1, self.count))
        return None if found is None else divided(added(found[0][0]), self.count)

    def ones(self) -> Tensor:
        return torch.ones_like(self.mean)

    def mean_square(self) -> Tensor:
        mean = self._mean(0)
        return self._torch().mean_square() if mean is None else mean

    def mean_magnitude(self) -> Tensor:
        mean = self._mean(1)
        return self._torch().mean_magnitude() if mean is None else mean

    def _first(self, values: Tensor, at: Tensor, each: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Of each chunk's blocks the best value (C, chunks) and the least of its indices."""
        values, at = (t.view(-1, each, *t.shape[1:]) for t in (values, at))
        best = values.amax((1, 3)) if largest else values.amin((1, 3))
        index = torch.where(values == best[:, None, :, None], at, 2**31 - 1).amin((1, 3))
        return best.t(), index.t().long()

    def largest(self, k: int) -> Tensor:
        found = self._statistics(2, Cut(0, 1, self.count)) if k == 1 else None
        if found is None:
            return self._torch().largest(k)
        out, each = found
        return self._first(out[1], out[2], each, largest=True)[1]

    def take(self, index: Tensor) -> Tensor:
        x = by_plane(self.x)
        chosen = x[flat_index(index, x.shape[2])].float()
        return chosen - self.mean.unsqueeze(1) + self.taint.unsqueeze(1)

    def extremes(self, cut: Cut) -> Extremes:
        found = self._statistics(3, cut)
        if found is None:
            return self._torch().extremes(cut)
        (_, high, high_at, low, low_at), each = found
        top, top_at = self._first(high, high_at, each, largest=True)
        bottom, bottom_at = self._first(low, low_at, each, largest=False)
        taint = self.taint.unsqueeze(1)
        return Extremes(top + taint, bottom + taint, top_at, bottom_at)
