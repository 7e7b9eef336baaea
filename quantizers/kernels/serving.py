"""How kernels are had, and which tensors they may be given."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: how kernels number dtypes and rounding modes
SOURCES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TARGETS = {torch.float32: 0, torch.int8: 1, torch.uint8: 2, torch.int16: 3, torch.int32: 4}
MODES = {
    mode: number
    for number, mode in enumerate(
        ("nearest_even", "toward_zero", "floor", "ceil", "half_away", "stochastic")
    )
}


_warned: list[Exception] = []


def _warn(error: Exception) -> None:
    """The process' only warning, whatever else fails later."""
    _warned.append(error)
    if len(_warned) == 1:
        warnings.warn(
            f"quantizers: fused kernels are off, quantization takes several times longer (the "
            f"results are the same): {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )


@cache
def made(module: str, name: str, *numbers: int) -> Any:
    """The kernel that `name` of a module of compiled kernels makes for these numbers, kept alive
    here; None, with a warning, where it cannot be had."""
    try:
        return getattr(importlib.import_module(module), name)(*numbers)
    except Exception as error:
        _warn(error)
        return None


@cache
def imported(module: str) -> Any:
    """A module of kernels; None, with a warning, where it cannot be had."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        _warn(error)
        return None


def is_dense(x: Tensor) -> bool:
    """Whether x's elements fill a run of memory, in any order."""
    return torch.ops.aten.is_non_overlapping_and_dense(x)  # type: ignore[no-any-return]
