"""A residual sum and its ReLU as Triton kernels: see kernels.residual."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import serves
from quantizers.kernels.serving import SOURCES, is_dense

from .launch import MOST, PASSES, launched

_BLOCK = 4096


def _launched(x: Tensor, y: Tensor, result: Tensor, off: Tensor, masked: bool) -> None:
    size = x.numel()
    launched(
        PASSES, "residual", x, -(-size // _BLOCK), x, y, result, off.view(torch.uint8), size,
        MASKED=masked, SOURCE=SOURCES[x.dtype], BLOCK=_BLOCK,
    )  # fmt: skip


def add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """See kernels.residual.add_relu."""
    alike = x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()
    if not (alike and x.dtype in SOURCES and 0 < x.numel() < MOST and serves(x, y)):
        return None
    result, off = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    if not is_dense(x) or result.stride() != x.stride():
        return None
    _launched(x, y, result, off, masked=False)
    return result, off


def masked(grad: Tensor, off: Tensor) -> Tensor | None:
    """See kernels.residual.masked."""
    alike = grad.dtype in SOURCES and grad.stride() == off.stride()
    if not (alike and 0 < grad.numel() < MOST and serves(grad, off)):
        return None
    result = torch.empty_like(grad)
    _launched(grad, grad, result, off, masked=True)
    return result
