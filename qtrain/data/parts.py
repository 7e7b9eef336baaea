"""A part of a training split held out: what settings are tuned on, so that no test sample is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import draws
from .dataset import DataSet
from .errors import DataError
from .splits import Split
from .text import TextSplit


@dataclass(frozen=True, kw_only=True, eq=False)
class PartSplit:
    """The samples `indices` (N,) int64 of a split, with their own augmentation."""

    split: Split
    indices: NDArray[np.int64]

    @property
    def sizes(self) -> dict[str, int]:
        """Those of the split."""
        return self.split.sizes

    @property
    def workers(self) -> int:
        """Those of the split."""
        return self.split.workers

    @property
    def truth(self) -> Tensor:
        """The targets of these samples."""
        return self.split.truth[torch.from_numpy(self.indices).to(self.split.truth.device)]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> PartSplit:
        """The same part of the split on a device."""
        return replace(self, split=self.split.to(device))

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) of this part -> what the split reads of them."""
        return self.split.read(self.indices[indices], seed=seed, epoch=epoch, augment=augment)


def held_out(data: DataSet, share: float) -> DataSet:
    """The data set with a share of its training samples in place of the test set, which stays
    unseen: the same random samples whatever the run's seed, of text the end of it.  DataError where
    one of both parts would be empty."""
    train = data.train
    if isinstance(train, TextSplit):
        cut = round(len(train.tokens) * (1 - share))
        rest = replace(train, tokens=train.tokens[:cut])
        return replace(data, train=rest, test=replace(train, tokens=train.tokens[cut:], offsets=1))
    count = round(len(train) * share)
    if not 0 < count < len(train):
        raise DataError(f"holdout: {share} of {len(train)} samples are {count}, need some of both")
    order = draws.permutation(len(train), seed=0, epoch=0, purpose=draws.HELD_OUT)
    parts = [np.sort(order[count:]), np.sort(order[:count])]
    rest_part, held = (PartSplit(split=train, indices=part) for part in parts)
    return replace(data, train=rest_part, test=held)
