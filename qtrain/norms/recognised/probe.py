"""A small run of a module's forward that leaves the module, and the random state, as they were."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: what a conversion adds to a module
ADDED = ("recipe", "norm_form", "state")
#: sizes of the axes that are no row, of which none is a row's
_AXES = (3, 2, 5, 4, 7)
_CPU = torch.device("cpu")


def axes(count: int, *sizes: int) -> tuple[int, ...]:
    """So many sizes, none of them among `sizes`."""
    return tuple(size for size in _AXES if size not in sizes)[:count]


def layouts(x: Tensor) -> list[Tensor]:
    """The same of two axes or more, as it may lie in memory."""
    found = [x.contiguous(), x.mT.contiguous().mT]
    if x.dim() == 4:
        found.append(x.contiguous(memory_format=torch.channels_last))
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers by name."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers("", False))}


def settings(module: nn.Module) -> dict[str, Any]:
    """The attributes of its own, without what torch keeps on every module."""
    torchs = vars(nn.Module())
    return {k: v for k, v in vars(module).items() if k not in torchs and k not in ADDED}


def replica(module: nn.Module) -> nn.Module:
    """A module of its class and settings on the CPU, in fp64, with numbers of its own: random ones
    from 0.5 to 1.5, integers 0.  No hooks.  It may raise what copying the settings does."""
    random = torch.Generator().manual_seed(0)

    def filled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=_CPU)
        drawn = torch.rand(tensor.shape, generator=random, dtype=torch.float64, device=_CPU)
        return drawn + 0.5

    made = type(module).__new__(type(module))
    nn.Module.__init__(made)
    vars(made).update(copy.deepcopy(settings(module)))
    for name, parameter in module._parameters.items():
        value = None if parameter is None else nn.Parameter(filled(parameter))
        made.register_parameter(name, value)
    for name, buffer in module._buffers.items():
        made.register_buffer(name, None if buffer is None else filled(buffer))
    for name, child in module._modules.items():
        if name not in ADDED:
            made.add_module(name, None if child is None else replica(child))
    return made


@contextmanager
def alone() -> Iterator[None]:
    """Within it, what runs sees no setting of the surroundings and leaves the random state."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        _CPU,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def other_inputs(module: nn.Module) -> list[str]:
    """The parameters of its forward beside the input."""
    given = list(inspect.signature(type(module).forward).parameters.values())[2:]
    return [one.name for one in given]


def brief(error: Exception) -> str:
    """An error in a few words."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:80]}"
