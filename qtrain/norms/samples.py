"""What a deviation may ask about the elements of each channel, less the channel's mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """`number` consecutive chunks of `length` elements each, the first at element `start`."""

    start: int
    number: int
    length: int


class Extremes(NamedTuple):
    """Each chunk's largest and smallest elements (C, number) and their indices, of equal ones the
    first (int64)."""

    high: Tensor
    low: Tensor
    high_at: Tensor
    low_at: Tensor


def cuts(count: int, chunks: int) -> list[Cut]:
    """`count` elements as consecutive chunks whose lengths differ by one at most, longer first."""
    size, longer = count // chunks, count % chunks  # torch.compile traces no divmod of sizes
    both = [Cut(0, longer, size + 1), Cut(longer * (size + 1), chunks - longer, size)]
    return [cut for cut in both if cut.number]


def within(cut: Cut, low: int, high: int) -> Iterator[tuple[int, Cut]]:
    """What of the cut's chunks lies among the elements low..high - 1: whole chunks that follow one
    another, or a part of one, and which chunk of the cut is the first."""
    start, end = max(low, cut.start), min(high, cut.start + cut.number * cut.length)
    while start < end:
        chunk, skipped = divmod(start - cut.start, cut.length)
        whole = 0 if skipped else (end - start) // cut.length
        part = Cut(start, 1, min(cut.length - skipped, end - start))
        part = Cut(start, whole, cut.length) if whole else part
        yield chunk, part
        start += part.number * part.length


class Sample:
    """`count` elements in each of C channels, less the channel's mean: a tensor (C, M), fp32 or
    fp64."""

    def __init__(self, rows: Tensor) -> None:
        self._rows, self.count = rows, rows.shape[1]

    def rows(self) -> Tensor:
        """The elements."""
        return self._rows

    def ones(self) -> Tensor:
        """(C,), in the dtype of the statistics."""
        return self._rows.new_ones(self._rows.shape[0])

    def mean_square(self) -> Tensor:
        """(C,)"""
        return self.rows().square().mean(1)

    def mean_magnitude(self) -> Tensor:
        """(C,)"""
        return self.rows().abs().mean(1)

    def largest(self, k: int) -> Tensor:
        """Indices (C, k), int64, of the k largest magnitudes."""
        magnitudes = self.rows().abs()
        if k == 1:  # the first of equal ones
            return magnitudes.argmax(1, keepdim=True)
        return magnitudes.topk(k, dim=1).indices

    def take(self, index: Tensor) -> Tensor:
        """The elements (C, J) at the indices (C, J)."""
        return self.rows().gather(1, index)

    def extremes(self, cut: Cut) -> Extremes:
        """The extremes of the cut's chunks; they may be given without the mean subtracted."""
        start, number, length = cut
        block = self.rows()[:, start : start + number * length].unflatten(1, (number, length))
        high, low = block.max(2), block.min(2)
        first = start + length * torch.arange(number, device=block.device)
        return Extremes(high.values, low.values, high.indices + first, low.indices + first)
