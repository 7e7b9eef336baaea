"""Data-parallel ranks, as torchrun starts them; one process is the only rank there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def joined(device: str) -> Iterator[None]:
    """In a process that torchrun started: the ranks know one another while this lasts.

    device   "cuda": each rank takes the GPU of its number on its machine
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def check() -> None:
    """SystemExit where torchrun started an experiment that does not join the ranks."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        sys.exit("this experiment runs in one process: start it with python -m, not torchrun")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """The sum of every rank's value, the same bits on all; with one rank the value itself."""
    if count() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def parallel(model: nn.Module) -> nn.Module:
    """The model whose gradients are the mean over the ranks; with one rank the model itself."""
    return model if count() == 1 else nn.parallel.DistributedDataParallel(model)


def share_buffers_(model: nn.Module) -> None:
    """Every rank's running statistics become those of rank 0."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
