"""A deviation's constant for a number of elements which torch.compile does not fix.

Compiled for any number, a graph holds the constant as an operation of that number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantizers.by_device import register

from .constants import largest_factor, range_factor

Factor = Callable[..., float]

_FACTORS: dict[str, Factor] = {"largest": largest_factor, "range": range_factor}


def factor(like: Tensor, name: str, constant: str, *sizes: int) -> float | Tensor:
    """`largest_factor` or `range_factor` of these sizes; fp64 (), on the device of `like`, where
    they may be symbols.  Either way the same bits come of a product with an fp32 tensor."""
    if torch.compiler.is_compiling() or any(isinstance(size, torch.SymInt) for size in sizes):
        traced: Tensor = torch.ops.qtrain.deviation_factor(like, name, constant, sizes)
        return traced
    return _FACTORS[name](constant, *sizes)


def filled(like: Tensor, value: float | Tensor) -> Tensor:
    """A tensor like another, full of one value."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).expand(like.shape)
    return torch.full_like(like, value)


def _factor(like: Tensor, name: str, constant: str, sizes: Sequence[int]) -> Tensor:
    return like.new_full((), _FACTORS[name](constant, *sizes), dtype=torch.float64)


def _fake(like: Tensor, name: str, constant: str, sizes: Sequence[int]) -> Tensor:
    return like.new_empty((), dtype=torch.float64)


register(
    "qtrain::deviation_factor(Tensor like, str name, str constant, SymInt[] sizes) -> Tensor",
    _factor, _fake, "CompositeExplicitAutograd",
)  # fmt: skip
