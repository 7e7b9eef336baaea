"""The order of samples and the batches of an epoch, as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import checks
from . import draws
from .errors import DataError
from .splits import Split

Batch = tuple[Tensor, Tensor]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Batches:
    """The batches `start`, `start + 1`, ... of one epoch, as one rank sees them.

    Yields images (N, C, H, W) float32 and labels (N,) int64, or characters and the next ones, both
    (N, context) int64.  `batch_size` is per rank: batch k of all ranks together is the k-th chunk
    of batch_size * world_size samples.  Training shuffles; a last, short chunk is dropped or, so
    that all ranks get equally many samples, padded by the epoch's first samples up to a multiple of
    world_size.  Evaluation keeps the order and sees each sample once; there the last batch of a
    rank may be shorter or missing.  Nothing depends on the number of workers or touches a global
    generator.  TypeError or ValueError for arguments of another kind or out of range.
    """

    split: Split
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    epoch: int = 0
    start: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    train: bool = True
    augment: bool = True  # in training only

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch_size", 1, 2**31 - 1),
            ("seed", 0, 2**63 - 1),
            ("epoch", 0, 2**63 - 1),
            ("world_size", 1, 2**31 - 1),
            ("rank", 0, self.world_size - 1),
        ):
            checks.integer(name, getattr(self, name), low=low, high=high)
        if self.drop_last and len(self.split) < self.batch_size * self.world_size:
            size = f"{self.batch_size} x {self.world_size} rank(s)"
            raise ValueError(
                f"batch_size: got {size}, but there are only {len(self.split)} samples and "
                "drop_last drops the short batch; use a smaller batch"
            )
        checks.integer("start", self.start, low=0, high=self.total)

    @property
    def total(self) -> int:
        """The number of batches in the whole epoch, for this rank."""
        full, tail = divmod(len(self.split), self.batch_size * self.world_size)
        if self.train:
            return full + (tail > 0 and not self.drop_last)
        return full + (tail > self.rank and not self.drop_last)

    def __len__(self) -> int:
        """The number of batches from `start` on."""
        return self.total - self.start

    def indices(self) -> list[NDArray[np.int64]]:
        """The sample indices of every batch of the epoch, for this rank; `start` is not applied."""
        n, chunk = len(self.split), self.batch_size * self.world_size
        order = np.arange(n)
        if self.train:
            order = draws.permutation(n, seed=self.seed, epoch=self.epoch)
            if not self.drop_last:
                short = -(n % chunk) % self.world_size
                order = np.concatenate([order, np.resize(order, short)])
        mine = []
        for k in range(self.total):
            part = order[k * chunk : (k + 1) * chunk]
            mine.append(np.array_split(part, self.world_size)[self.rank])
        return mine

    def __iter__(self) -> Iterator[Batch]:
        read = partial(_read, self, self.indices())
        numbers = range(self.start, self.total)
        for inputs, targets in loaded(read, numbers, self.split.workers):  # noqa: UP028 (no lists)
            yield inputs, targets


def _read(batches: Batches, indices: list[NDArray[np.int64]], k: int) -> Batch:
    augment = batches.train and batches.augment
    seed, epoch = batches.seed, batches.epoch
    return batches.split.read(indices[k], seed=seed, epoch=epoch, augment=augment)


def loaded(read: Callable[[int], _Item], numbers: range, workers: int) -> Iterator[_Item]:
    """What `read` makes of each number, in order; by worker processes where there are any."""
    if workers == 0:
        yield from map(read, numbers)
        return
    loader: DataLoader[_Item | DataError] = DataLoader(
        _Caught(read),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        # Without its own generator the loader draws a seed from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
    for item in loader:
        if isinstance(item, DataError):
            raise item
        yield item


class _Caught(Dataset[Any]):
    """An error travels as a value, for a worker would bury it in a traceback."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self._read = read

    def __getitem__(self, number: int) -> Any:
        try:
            return self._read(number)
        except DataError as error:
            return error
