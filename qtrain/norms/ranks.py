"""A batch that lies on several ranks, as a synchronised norm sees it: one, in rank order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..autograd.capture import capturing
from .passes import Sums
from .samples import Cut, Extremes, Sample, within


class Ranks(NamedTuple):
    """The ranks of a process group whose batches are one, concatenated in rank order.

    counts   elements that a channel has on each
    own      this rank's place among them
    """

    group: dist.ProcessGroup
    counts: tuple[int, ...]
    own: int

    @property
    def total(self) -> int:
        """Elements that a channel has on all."""
        return sum(self.counts)

    def gathered(self, x: Tensor) -> Tensor:
        """Each rank's x: (R, *x.shape).  One collective."""
        every = x.new_empty(dist.get_world_size(self.group), *x.shape)
        dist.all_gather(list(every.unbind()), x.contiguous(), group=self.group)
        return every

    def summed(self, x: Tensor) -> Tensor:
        """The sum of each rank's x, taken in fp64, in x's dtype.  One collective."""
        total = x.to(torch.float64, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(x.dtype)

    def sums(self, own: Sums) -> Sums:
        """Those of all ranks.  One collective."""
        parts = [part for part in own if part is not None]
        return Sums(*self.summed(torch.stack(parts)), *[None] * (len(own) - len(parts)))

    def averaged(self, mean: Tensor) -> Tensor:
        """The mean (C,) over all elements of what each rank has the mean of over its own.  One
        collective."""
        count = self.counts[self.own]
        share = mean.double() * (count / self.total) if count else torch.zeros_like(mean).double()
        return self.summed(share).to(mean.dtype)

    def held(self, index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and values that are another rank's, as `Together` numbers them, made (0, 0)."""
        return index.clamp(min=0), torch.where(index >= 0, value, 0)


def ranks_of(x: Tensor, group: dist.ProcessGroup) -> Ranks:
    """The group's ranks, of which each has its own x (N, C, *S).  One collective, which waits for
    the device only where the group has no backend for the CPU."""
    count = x.numel() // x.shape[1]
    waits = "cpu:" not in dist.get_backend_config(group)
    if waits and capturing():
        raise ValueError(
            "SyncBatchNorm: a CUDA graph is being captured, and the ranks' batch sizes are read "
            "from the device; give the group a backend for the CPU: 'cpu:gloo,cuda:nccl'"
        )
    own = torch.tensor(count, device=x.device if waits else "cpu")
    ranks = Ranks(group, (), dist.get_rank(group))
    return ranks._replace(counts=tuple(ranks.gathered(own).tolist()))


class Together(Sample):
    """One of the elements of all ranks: `own` those of this one, less the mean of all.

    An index is one into `own`, or -1 for an element of another rank.  Of equal elements the first
    in rank order is taken; of those of topk on one rank, the ones that `own` takes.
    """

    def __init__(self, own: Sample, ranks: Ranks) -> None:
        self.own, self.ranks, self.count = own, ranks, ranks.total

    def ones(self) -> Tensor:
        return self.own.ones()

    def mean_square(self) -> Tensor:
        return self.ranks.averaged(self.own.mean_square())

    def mean_magnitude(self) -> Tensor:
        return self.ranks.averaged(self.own.mean_magnitude())

    def largest(self, k: int) -> Tensor:
        ones = self.ones().unsqueeze(1)
        values, at = 0 * ones.expand(-1, k), -ones.long().expand(-1, k)
        few = min(k, self.own.count)
        if few:  # what is missing to k is 0: it is taken only where all are, and has no slope
            found = self.own.largest(few)
            values = torch.cat([self.own.take(found), values[:, few:]], 1)
            at = torch.cat([found, at[:, few:]], 1)
        every = self.ranks.gathered(values).transpose(0, 1).flatten(1).abs()
        place = every.sort(dim=1, descending=True, stable=True).indices[:, :k]
        here = place.div(k, rounding_mode="floor") == self.ranks.own
        return torch.where(here, at.gather(1, place.remainder(k)), -1)

    def take(self, index: Tensor) -> Tensor:
        if self.own.count:
            _, values = self.ranks.held(index, self.own.take(index.clamp(min=0)))
        else:
            values = self.ones().new_zeros(index.shape)
        return self.ranks.summed(values)

    def extremes(self, cut: Cut) -> Extremes:
        # each rank's part of every chunk, low ones negated
        shape = (2, self.ones().shape[0], cut.number)
        best = self.ones().new_full(shape, float("-inf"))
        at = best.new_full(shape, -1, dtype=torch.int64)
        start = sum(self.ranks.counts[: self.ranks.own])
        for first, part in within(cut, start, start + self.own.count):
            found = self.own.extremes(part._replace(start=part.start - start))
            chunks = slice(first, first + part.number)
            for side, index in enumerate((found.high_at, found.low_at)):
                at[side, :, chunks] = index
                best[side, :, chunks] = (1 - 2 * side) * self.own.take(index)
        values, rank = self.ranks.gathered(best).max(0)
        at = torch.where(rank == self.ranks.own, at, -1)
        return Extremes(values[0], -values[1], at[0], at[1])
