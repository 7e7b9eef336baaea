"""Python numbers met by tensors: the same bits on every device and under every default dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def constant(value: float, like: Tensor) -> Tensor:
    """0-d, in the dtype and on the device of `like`, which does not wait for it."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def divided(x: Tensor, number: float) -> Tensor:
    """x / number, rounded once.  Any floating-point tensor -> its shape and dtype.

    torch on CUDA divides a tensor by a Python number, or by a 0-d tensor on the CPU, by
    multiplying with the reciprocal, which rounds twice.
    """
    return x / constant(number, x)


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), which takes a while also where there is nothing to do."""
    return x if x.dtype is dtype else x.to(dtype)
