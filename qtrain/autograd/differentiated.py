"""Gradients that have no derivative of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def once(grad: Tensor, grad_output: Tensor) -> Tensor:
    """A gradient that came of grad_output, whose own derivative is refused."""
    found: Tensor = _Once.apply(grad, grad_output)  # type: ignore[no-untyped-call]
    return found


class _Once(torch.autograd.Function):
    """Identity on a gradient whose own derivative is refused."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grad_output: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "qtrain: a quantized layer cannot be differentiated twice (double backward): the "
            "derivative of its rounded gradient is zero almost everywhere; leave the layers it "
            "passes through in full precision: overrides={name: None}"
        )
