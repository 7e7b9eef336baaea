"""Range rules: which interval of values a granule's codes are spread over.

A rule maps (x, block shape) to (low, high), both fp32 of the compact shape: one entry per
granule.  A granule with a non-finite element gets a non-finite range, without a branch.  An empty
tensor gets the range (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import checks, tensor_checks
from ..devices.by_device import ByDevice
from ..devices.numbers import divided
from ..granularity import blocked, compact_shape, is_plain
from ..kernels import extremes as kernels

State = dict[str, Tensor]
Range = tuple[Tensor, Tensor]


class RangeRule(Protocol):
    """What a Quantizer asks of its range: `rule(x, block, state=, training=) -> (low, high)`.

    A class needs only `__call__`; one with memory offers init_state(compact) -> dict of tensors,
    which every call is given as `state` and updates in place when `training`.  compact: the shape
    of the ranges, one entry a block.  Tensors of that many entries come back in the shape of the
    ranges of x, whose axes may be more than those the state was made for.
    """

    def __call__(
        self, x: Tensor, block: Sequence[int], *, state: State | None = None, training: bool = True
    ) -> Range: ...


def check_rule(field: str, rule: RangeRule) -> None:
    """TypeError unless `rule` is an object that can be called as a range rule is."""
    need = "a range rule such as absmax, called as rule(x, block, state=..., training=...)"
    checks.function(field, rule, need, None, (), state=None, training=True)


class _Rule:
    """A rule without memory."""

    def __call__(
        self, x: Tensor, block: Sequence[int], *, state: State | None = None, training: bool = True
    ) -> Range:
        tensor_checks.real(x)
        if len(tensor_checks.shape("block", block)) != x.dim() or not all(block):
            raise ValueError(
                f"block: got {checks.shown(block)}, need {x.dim()} sizes of at least 1"
            )
        compact = compact_shape(x.shape, block)
        if x.numel() == 0:
            zero = x.new_zeros(compact, dtype=torch.float32)
            return zero, zero
        low, high = self._ends(x, block)
        return low.reshape(compact), high.reshape(compact)

    def _ends(self, x: Tensor, block: Sequence[int]) -> Range:
        """The range of each granule, in C order, fp32."""
        raise NotImplementedError


def _extremes(x: Tensor, block: Sequence[int]) -> Range:
    """(min x, max x) of each block, fp32, in C order."""
    if is_plain(x.shape, block):
        axes = [a for a, b in enumerate(block) if b > 1]
    else:
        x, axes = blocked(x, block)
    low, high = (x.amin(axes), x.amax(axes)) if axes else (x, x)
    return low.float(), high.float()


extremes = ByDevice(_extremes, cpu=kernels.extremes)


@dataclass(frozen=True)
class MinMax(_Rule):
    """(min x, max x)."""

    def _ends(self, x: Tensor, block: Sequence[int]) -> Range:
        return extremes(x, block)


@dataclass(frozen=True)
class AbsMax(MinMax):
    """(-a, a) with a = max |x|."""

    def _ends(self, x: Tensor, block: Sequence[int]) -> Range:
        low, high = super()._ends(x, block)
        bound = torch.maximum(low.abs(), high.abs())
        return -bound, bound


def _cut_apart(rule: RangeRule, x: Tensor, block: Sequence[int]) -> Range | None:
    """The ranges of full blocks and of shorter last ones, each found alone; None where no block is
    shorter."""
    for axis, (size, b) in enumerate(zip(x.shape, block, strict=True)):
        if size % b:
            full = size - size % b
            last = [*block[:axis], size - full, *block[axis + 1 :]]
            parts = (
                rule(x.narrow(axis, 0, full), block),
                rule(x.narrow(axis, full, size - full), last),
            )
            low, high = (torch.cat(ends, axis) for ends in zip(*parts, strict=True))
            return low, high
    return None


def _rows(x: Tensor, block: Sequence[int]) -> Tensor:
    """x as (granules, elements of a granule), in C order; blocks divide the axes."""
    view, inner = blocked(x, block)
    outer = [axis for axis in range(view.dim()) if axis not in inner]
    granules = math.prod([view.shape[axis] for axis in outer])
    return view.permute((*outer, *inner)).reshape(granules, -1)


class _OfRows(_Rule):
    """A rule of each granule's elements as a row, in C order."""

    def _ends(self, x: Tensor, block: Sequence[int]) -> Range:
        ragged = _cut_apart(self, x, block)
        return self._of_rows(_rows(x, block), block) if ragged is None else ragged

    def _of_rows(self, rows: Tensor, block: Sequence[int]) -> Range:
        """The range of each row, fp32."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChunkedMinMax(_OfRows):
    """(mean of the chunks' minima, mean of their maxima): it clips by design.

    chunks   how many equal parts of a granule, in C order; None: one chunk per index of axis 0
             (a sample), the rule of Banner et al. 2018 for activations.
    """

    chunks: int | None = None

    def __post_init__(self) -> None:
        if self.chunks is not None:
            checks.integer("chunks", self.chunks, low=1, high=2**31)

    def _of_rows(self, rows: Tensor, block: Sequence[int]) -> Range:
        chunks = self.chunks
        if chunks is None:
            chunks = block[0] if block else 1
        size = -(-rows.shape[1] // chunks)
        if rows.shape[1] % size == 0:
            cut = rows.reshape(rows.shape[0], -1, size)
            ends = torch.stack([cut.amin(2), cut.amax(2)])
        else:
            parts = torch.split(rows, size, dim=1)
            lows, highs = [part.amin(1) for part in parts], [part.amax(1) for part in parts]
            ends = torch.stack([torch.stack(lows, 1), torch.stack(highs, 1)])
        # fp64 holds a sum of the largest fp32 numbers, and rounds far below their last bit
        total = ends.float().sum(2, dtype=torch.float64)
        low, high = divided(total, ends.shape[2]).float()
        return low, high


@dataclass(frozen=True)
class Percentile(_OfRows):
    """(quantile 1 - fraction, quantile fraction) of x, linearly interpolated: it clips outliers.

    fraction   in (0.5, 1]; 0.999 leaves 0.1 % of the elements outside at either end.
    """

    fraction: float

    def __post_init__(self) -> None:
        checks.share("percentile: fraction", self.fraction, above=0.5)

    def _of_rows(self, rows: Tensor, block: Sequence[int]) -> Range:
        ordered = rows.float().sort(dim=1).values
        finite = torch.isfinite(ordered[:, 0]) & torch.isfinite(ordered[:, -1])  # NaN sorts last

        def quantile(fraction: float) -> Tensor:
            position = (ordered.shape[1] - 1) * fraction
            below = math.floor(position)
            left = ordered[:, below].double()  # where the difference of two fp32 numbers fits
            right = ordered[:, min(below + 1, ordered.shape[1] - 1)].double()
            value = (left + (right - left) * (position - below)).float()
            return torch.where(finite, value, float("nan"))

        return quantile(1 - self.fraction), quantile(self.fraction)


@dataclass(frozen=True)
class RMS(_OfRows):
    """(-b, b) with b = factor * the root of the mean of x^2, taken in fp64: it clips by design.

    factor   in units of that root (of the deviation, where the mean is 0): QuEST takes the one of
             the least squared error of its format on normal numbers (Panferov et al. 2025, arXiv
             2502.05003)
    """

    factor: float

    def __post_init__(self) -> None:
        checks.number("rms: factor", self.factor, low=0, high=2.0**20, positive=True)

    def _of_rows(self, rows: Tensor, block: Sequence[int]) -> Range:
        squares = rows.double().square().sum(1)
        root = divided(squares, rows.shape[1]).sqrt() * self.factor
        most = torch.finfo(torch.float32).max
        bound = torch.where(torch.isfinite(root), root.clamp(max=most), root).float()
        return -bound, bound


absmax = AbsMax()
minmax = MinMax()


def chunked_minmax(chunks: int | None = None) -> ChunkedMinMax:
    """Minima and maxima averaged over chunks (None: over samples)."""
    return ChunkedMinMax(chunks)


def rms(factor: float) -> RMS:
    """`factor` times the root mean square, to either side of 0."""
    return RMS(factor)


def percentile(fraction: float) -> Percentile:
    """Quantiles 1 - fraction and fraction."""
    return Percentile(fraction)
