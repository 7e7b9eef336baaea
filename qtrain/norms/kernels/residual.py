"""A residual sum and its ReLU, compiled: the faster forms of `operations.add_relu` and `masked`."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import kernels
from quantizers.kernels.serving import SOURCES

from .memory import made, run


def add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """(relu(x + y), where it was off), or None where no kernel serves them."""
    alike = x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()
    if not (alike and x.dtype in SOURCES and kernels.serves(x, y)):
        return None
    kernel = made("residual", SOURCES[x.dtype], False)
    result, off = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    if kernel is None or x.numel() == 0 or not kernels.is_dense(x) or result.stride() != x.stride():
        return None
    run(kernel, x.numel(), x.numel(), x, y, result, off)
    return result, off


def masked(grad: Tensor, off: Tensor) -> Tensor | None:
    """The gradient, 0 where off, or None where no kernel serves it; off: dense."""
    alike = grad.dtype in SOURCES and grad.stride() == off.stride() and kernels.serves(grad)
    kernel = made("residual", SOURCES[grad.dtype], True) if alike and grad.numel() else None
    if kernel is None:
        return None
    result = torch.empty_like(grad)
    run(kernel, grad.numel(), grad.numel(), grad, 0, result, off)
    return result
