"""The autograd functions of batch-norm: normalization, and quantization of its operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantizers import FloatFormat, QuantizerLike, round_to
from quantizers.protocol import straight_through
from quantizers.ranges import State

from ..autograd.function_output import function_output
from .normalize import Form, Normalized
from .operations import gradients, normalize


class Normalize(torch.autograd.Function):
    """`normalize` -> output, mean, sigma and, of a deferred one, where; differentiable in the
    output.

    Saved: x itself and tensors of its channels; a ReLU's mask is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
    ) -> tuple[Tensor | None, ...]:
        made = normalize(input, weight, bias, form)
        ctx.save_for_backward(input, weight, bias, *made[1:])
        ctx.form = form
        ctx.mark_non_differentiable(made.mean, made.sigma)
        output = function_output(made.output)
        return (output, *made[1 : 4 if form.deferred else 3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *made = ctx.saved_tensors
        form: Form = ctx.form
        grads = gradients(x, weight, bias, Normalized(grad_output, *made), grad_output, form)
        wanted = ctx.needs_input_grad
        return (
            grads[0] if wanted[0] else None,
            grads[1].to(weight.dtype) if wanted[1] else None,
            grads[2].to(bias.dtype) if wanted[2] else None,
            None,
        )


class StraightThrough(torch.autograd.Function):
    """`value`, the quantized x, with the gradient that the quantizer passes to x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, quantizer: QuantizerLike, state: State | None
    ) -> Tensor:
        ctx.quantizer, ctx.state, ctx.dtype = quantizer, state, x.dtype
        ctx.save_for_backward(*(() if straight_through(quantizer) else (x,)))
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not straight_through(ctx.quantizer):
            grad_output = ctx.quantizer.backward(grad_output, ctx.saved_tensors[0], ctx.state)
        return grad_output.to(ctx.dtype), None, None, None


class Rounded(torch.autograd.Function):
    """x rounded to a format, straight-through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: FloatFormat) -> Tensor:
        return function_output(round_to(x, fmt))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return grad_output, None


class QuantizeGradient(torch.autograd.Function):
    """x, and the gradient quantized on its way back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        quantizer: QuantizerLike,
        key: Tensor | None,
        state: State | None,
        training: bool,
    ) -> Tensor:
        ctx.quantizer, ctx.key, ctx.state, ctx.training = quantizer, key, state, training
        return x.clone()  # a view could not be written into, as by ReLU(inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        quantized = ctx.quantizer(grad_output, key=ctx.key, state=ctx.state, training=ctx.training)
        return quantized.dequantize().to(grad_output.dtype), None, None, None, None
