"""A forward of a strange network on its first samples, before anything of a run is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...copies import copied
from ...data import DataSet
from ...data.drawing import drawing_from
from ...inspection.step import logits_of


def channels_last_(model: nn.Module) -> None:
    """Lay out weights and buffers of four axes as channels_last, in which convolutions of codes
    and the norms behind them run; others have no such layout."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def rehearsed(config: Any, network: nn.Module, dataset: DataSet) -> bool:
    """Whether channels_last suits the network: a forward that views a convolution's output as
    rows, x.view(len(x), -1), runs in torch's usual layout alone.

    Lazy modules get their parameters, drawn from the run's seed.  ValueError where the forward
    fails on the first training samples, or its logits do not fit their targets.
    """
    indices = np.arange(min(2, len(dataset.train)), dtype=np.int64)
    batch = dataset.train.read(indices, seed=config.seed, epoch=0, augment=True)
    inputs, targets = (x.cpu() for x in batch)
    with drawing_from(config.seed):
        if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
            _forward(config, network, inputs, dataset)
        twin = copied(network)
        channels_last_(twin)
        try:
            logits, last = _forward(config, twin, inputs, dataset), True
        except ValueError:
            logits, last = _forward(config, copied(network), inputs, dataset), False
    _check(config, logits, targets, dataset)
    return last


def _forward(config: Any, network: nn.Module, inputs: Tensor, dataset: DataSet) -> Tensor:
    """The logits, in evaluation: one sample has no batch statistics."""
    try:
        with torch.no_grad():
            return logits_of(network.eval()(inputs))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward of the user's raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"model: {config.model!r} fails on inputs {tuple(inputs.shape)} {inputs.dtype} of data "
            f"{config.data!r}, {_told(dataset)}: {reason}"
        ) from error
    finally:
        network.train()


def _check(config: Any, logits: Tensor, targets: Tensor, dataset: DataSet) -> None:
    need = (*targets.shape, dataset.train.sizes["num_classes"])
    if logits.shape[:-1] != targets.shape or logits.shape[-1] < need[-1]:
        raise ValueError(
            f"model: {config.model!r} gives logits {tuple(logits.shape)} for targets "
            f"{tuple(targets.shape)} of data {config.data!r}, {_told(dataset)}; need {need}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"model: {config.model!r} gives logits of {logits.dtype}, need floats")


def _told(dataset: DataSet) -> str:
    return "which has " + ", ".join(f"{what}={size}" for what, size in dataset.sizes.items())
