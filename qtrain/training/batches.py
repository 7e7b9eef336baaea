"""The training batches of a run, in the order that its configuration decides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import data
from .config import TrainConfig


def training_batch(
    config: TrainConfig, dataset: data.DataSet, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The run's first training batch, on which errors are reported."""
    inputs, targets = next(iter(epoch_batches(config, dataset, epoch=0, start=0)))
    return inputs.to(device), targets.to(device)


def epoch_batches(
    config: TrainConfig, dataset: data.DataSet, *, epoch: int, start: int
) -> data.Batches:
    return data.Batches(
        split=dataset.train,
        batch_size=config.batch_size,
        seed=config.seed,
        epoch=epoch,
        start=start,
        # a last batch of one sample has no batch statistics
        drop_last=len(dataset.train) >= config.batch_size,
    )


def test_batches(
    config: TrainConfig, dataset: data.DataSet, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of the test set."""
    # no statistics are taken: larger is only faster, but a long window fills memory by itself
    size = max(config.batch_size, 256 // dataset.sizes.get("context", 1))
    for inputs, targets in data.Batches(split=dataset.test, batch_size=size, train=False):
        yield inputs.to(device), targets.to(device)


def total_steps(config: TrainConfig, dataset: data.DataSet) -> int:
    """The steps of the whole run."""
    return config.epochs * epoch_batches(config, dataset, epoch=0, start=0).total
