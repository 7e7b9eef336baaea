"""What a deviation asks of channels' elements, read from x by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.devices.numbers import divided

from ...passes import centered_rows, flat_index
from ...samples import Cut, Extremes, Sample
from ..memory import by_plane
from .launch import STATISTICS, Parts, Tiles, launched, parts, tiles, whole


def moments(
    x: Tensor, of: Tiles, cut: Parts, *, squares: bool = False, extremes: bool = False
) -> tuple[Tensor, ...]:
    """Of each part of x, (C, slots): sums and squares, fp64; high and low, fp32, and the first
    elements that have them, int32.  See triton_statistics.moments."""
    shape = of.layout.channels, cut.slots
    sums = torch.empty((2 if squares else 1, *shape), dtype=torch.float64, device=x.device)
    found = torch.empty((4 if extremes else 0, *shape), dtype=torch.float32, device=x.device)
    ends = (found[0], found[1], *found[2:].view(torch.int32)) if extremes else (sums[0],) * 4
    launched(
        STATISTICS, "moments", x, cut.slots * of.across, x, sums[0], sums[-1], *ends,
        of.layout.channels, of.layout.width, *cut.words, SQUARES=squares, EXTREMES=extremes,
        **of.read(cut),
    )  # fmt: skip
    return sums[0], sums[-1], *ends


def about(x: Tensor, of: Tiles, mean: Tensor, kind: str) -> tuple[Tensor, Tensor, Parts]:
    """Of each part of x - mean, (C, slots): sums of squares or magnitudes, fp64, or the largest
    magnitude, fp32, and the first element that has it, int32.  See triton_statistics.about."""
    cut = whole(of)
    shape = of.layout.channels, cut.slots
    dtype = torch.float32 if kind == "largest" else torch.float64
    sums = torch.empty(shape, dtype=dtype, device=x.device)
    ats = torch.empty_like(sums, dtype=torch.int32) if kind == "largest" else sums
    launched(
        STATISTICS, "about", x, cut.slots * of.across, x, mean.contiguous(), sums, ats,
        of.layout.channels, of.layout.width, *cut.words, KIND=kind, **of.read(cut),
    )  # fmt: skip
    return sums, ats, cut


class TritonSample(Sample):
    """One read from x's own memory."""

    def __init__(self, x: Tensor, of: Tiles, mean: Tensor) -> None:
        self.x, self.tiles, self.mean, self.count = x, of, mean, of.elements
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean

    def rows(self) -> Tensor:
        return centered_rows(self.x, self.mean)

    def ones(self) -> Tensor:
        return torch.ones_like(self.mean)

    def _mean(self, kind: str) -> Tensor:
        return divided(about(self.x, self.tiles, self.mean, kind)[0].sum(1).float(), self.count)

    def mean_square(self) -> Tensor:
        return self._mean("squares")

    def mean_magnitude(self) -> Tensor:
        return self._mean("magnitudes")

    def largest(self, k: int) -> Tensor:
        if k != 1:
            return super().largest(k)
        values, ats, _ = about(self.x, self.tiles, self.mean, "largest")
        return _first(values.unsqueeze(1), ats.unsqueeze(1), True)[1]

    def take(self, index: Tensor) -> Tensor:
        x = by_plane(self.x)
        chosen = x[flat_index(index, x.shape[2])].float()
        return chosen - self.mean.unsqueeze(1) + self.taint.unsqueeze(1)

    def extremes(self, cut: Cut) -> Extremes:
        of = tiles(self.tiles.layout, cut.length)
        own = parts(of, cut.start, cut.length, 0, cut.number)
        _, _, *found = moments(self.x, of, own, extremes=True)
        high, low, high_at, low_at = (t.unflatten(1, (cut.number, own.parts)) for t in found)
        top, top_at = _first(high, high_at, True)
        bottom, bottom_at = _first(low, low_at, False)
        taint = self.taint.unsqueeze(1)
        return Extremes(top + taint, bottom + taint, top_at, bottom_at)


def _first(values: Tensor, at: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Of each chunk's parts (C, chunks, parts) the best value, and the least of its indices."""
    best = values.amax(2) if largest else values.amin(2)
    index = torch.where(values == best.unsqueeze(2), at, 2**31 - 1).amin(2)
    return best, index.long()
