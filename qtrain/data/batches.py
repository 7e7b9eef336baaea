"""The order of samples and the batches of an epoch, as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import draws
from .errors import DataError
from .splits import Split

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batches:
    """The batches `start`, `start + 1`, ... of one epoch, as one rank sees them.

    Yields images (N, C, H, W) float32 and labels (N,) int64, or characters and the next ones, both
    (N, context) int64.  `batch_size` is per rank: batch k of all ranks together is the k-th chunk
    of batch_size * world_size samples.  Training shuffles; a last, short chunk is dropped or, so
    that all ranks get equally many samples, padded by the epoch's first samples up to a multiple of
    world_size.  Evaluation keeps the order and sees each sample once; there the last batch of a
    rank may be shorter or missing.  Nothing depends on the number of workers or touches a global
    generator.  ValueError for arguments out of range.
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
            ("batch_size", 1, 2**31),
            ("seed", 0, 2**63),
            ("epoch", 0, 2**63),
            ("world_size", 1, 2**31),
            ("rank", 0, self.world_size),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
                raise ValueError(f"{name}: got {value!r}, need an integer in [{low}, {high})")
        if self.drop_last and len(self.split) < self.batch_size * self.world_size:
            size = f"{self.batch_size} x {self.world_size} rank(s)"
            raise ValueError(
                f"batch_size: got {size}, but there are only {len(self.split)} samples and "
                "drop_last drops the short batch; use a smaller batch"
            )
        if isinstance(self.start, bool) or not isinstance(self.start, int):
            raise ValueError(f"start: got {self.start!r}, need an integer")
        if not 0 <= self.start <= self.total:
            raise ValueError(f"start: got {self.start}, need 0..{self.total}")

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
        reader = _Reader(self)
        if self.split.workers == 0:
            for k in range(self.start, self.total):
                yield _unwrap(reader[k])
            return
        loader: DataLoader[Batch | DataError] = DataLoader(
            reader,
            batch_size=None,
            sampler=range(self.start, self.total),
            num_workers=self.split.workers,
            # Without its own generator the loader draws a seed from torch's global one.
            generator=torch.Generator().manual_seed(0),
        )
        for item in loader:
            yield _unwrap(item)


class _Reader(Dataset["Batch | DataError"]):
    """Batch k by number; an error travels as a value, for a worker would bury it in a traceback."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._indices = batches.indices()

    def __getitem__(self, k: int) -> Batch | DataError:
        b = self._batches
        try:
            return b.split.read(
                self._indices[k], seed=b.seed, epoch=b.epoch, augment=b.train and b.augment
            )
        except DataError as error:
            return error


def _unwrap(item: Batch | DataError) -> Batch:
    if isinstance(item, DataError):
        raise item
    inputs, targets = item
    return inputs, targets
