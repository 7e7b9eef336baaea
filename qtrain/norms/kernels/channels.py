"""A batch-norm's channels, read from the input's own memory for what a deviation asks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import kernels
from quantizers.kernels.serving import SOURCES
from quantizers.numbers import divided

from .. import passes as norm_passes
from ..passes import flat_index
from ..samples import Cut, Extremes, Sample
from .memory import added, by_plane, in_blocks, is_planes, run, size


class Channels:
    """A Sample read from x's own memory."""

    def __init__(self, x: Tensor, mean: Tensor) -> None:
        self.x, self.mean = x, mean
        self.channels = x.shape[1]
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean

    @property
    def count(self) -> int:
        return self.x.numel() // self.channels

    def _torch(self) -> Sample:
        return norm_passes.sample(self.x, self.mean)

    def _statistics(self, kind: int, cut: Cut) -> tuple[list[Tensor], int] | None:
        planes, (_, width, channels) = is_planes(self.x), size(self.x)
        kernel = kernels.made(
            "qtrain.norms.kernels.compiled_statistics", "statistics", SOURCES[self.x.dtype], kind,
            planes,
        )  # fmt: skip
        if kernel is None:
            return None
        blocks = in_blocks(planes, width, cut)
        total, high, low = (blocks.partial(self.mean, channels) for _ in range(3))
        high_at, low_at = (total.new_empty(total.shape, dtype=torch.int32) for _ in range(2))
        out = [total, high, high_at, low, low_at]
        run(
            kernel, self.x.numel(), channels, width, blocks.lanes, self.x, blocks.starts,
            total.shape[0], *out, self.mean,
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
        if k > 1:
            rows = self.x.transpose(0, 1).flatten(1).float() - self.mean.unsqueeze(1)
            return rows.abs().topk(k, dim=1).indices
        found = self._statistics(2, Cut(0, 1, self.count))
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


def sample(x: Tensor, mean: Tensor) -> Channels:
    """The channels' elements less their means."""
    return Channels(x, mean)
