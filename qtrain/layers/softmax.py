"""Attention's softmax: the mask is added, and rows that a mask hides from every key are 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantizers.devices.by_device import ByDevice

from ..autograd.function_output import function_output
from .gpu import softmax as launched


def softmax(logits: Tensor, mask: Tensor | None, idle: Tensor | None) -> Tensor:
    """softmax(logits + mask) over the last axis, 0 in idle rows, whose gradient is 0, too.

    logits (*, S), mask, which broadcasts with them: floating point; idle: bool, of (*, 1).  The
    result has torch's dtype, of the sum, or autocast's; logits and mask have gradients.

    On a GPU, of up to 8192 keys in up to 32 bits, one kernel each way, and nothing in memory but
    the results.  Before a narrower dtype rounds it, a weight w is within (8 + d/2) 2^-23 w + 2^-126
    of softmax in float64 of the sum as torch rounds it, where the sum is d below its row's largest:
    exp's error, the total's, the division's and that of d, which is rounded.  A gradient is within
    2^-21 (|g w| + w sum |g w|) of g w - w sum g w, g the weights' gradient: 2^-126 beside it.
    """
    return _softmax(logits, mask, idle)


def _by_torch(logits: Tensor, mask: Tensor | None, idle: Tensor | None) -> Tensor:
    if mask is not None:
        # adding costs nothing in the backward pass: at a weight of 0 the gradient is 0 already
        logits = logits + mask
    if idle is None:
        return logits.softmax(-1)
    return _Weights.apply(logits, idle)  # type: ignore[no-untyped-call, no-any-return]


def _in_one_pass(logits: Tensor, mask: Tensor | None, idle: Tensor | None) -> Tensor | None:
    if not launched.serves(logits, mask, idle):
        return None
    return _OnePass.apply(logits, mask, idle)  # type: ignore[no-untyped-call, no-any-return]


_softmax = ByDevice(_by_torch, cuda=_in_one_pass)


def _gradient_by_torch(grad: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype).to(dtype)


_gradient = ByDevice(_gradient_by_torch, cuda=launched.gradient)


class _Weights(torch.autograd.Function):
    """softmax over the last axis, 0 in idle rows; their gradient is 0 because the weights are."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, idle: Tensor) -> Tensor:
        weights = logits.softmax(-1).masked_fill_(idle, 0.0)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(weights)
        return function_output(weights)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = ctx.saved_tensors
        return _gradient(grad_output, weights, ctx.dtype), None


class _OnePass(_Weights):
    """The same with the mask added to the logits, by a kernel."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, mask: Tensor | None, idle: Tensor | None
    ) -> Tensor:
        weights = launched.softmax(logits, mask, idle)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *_Weights.backward(ctx, grad_output), None
