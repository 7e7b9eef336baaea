"""The autograd functions of batch-norm: normalization, and quantization of its operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantizers import QuantizerLike
from quantizers.protocol import straight_through
from quantizers.ranges import State

from .deviations import Deviation
from .norm_recipe import StatisticsGradient


def wide(x: Tensor) -> Tensor:
    """x in the dtype of the statistics: fp64 for fp64, fp32 for the others."""
    return x if x.dtype == torch.float64 else x.float()


def lift(per_channel: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), in the dtype of `like` (N, C, *S)."""
    return per_channel.to(like.dtype).reshape(1, -1, *[1] * (like.dim() - 2))


class Normalize(torch.autograd.Function):
    """x (N, C, *S) -> (x - mean) / divisor * weight + bias in fp32 or fp64, mean, sigma (C,)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        deviation: Deviation,
        carry: StatisticsGradient,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = wide(input)
        rows = x.transpose(0, 1).flatten(1)
        mean = rows.mean(1)
        sigma, index, slope = deviation.estimate(rows - mean.unsqueeze(1))
        divisor = deviation.stabilized(sigma, eps)
        output = (x - lift(mean, x)) / lift(divisor, x)
        if weight is not None:
            output = output * lift(weight, x)
        if bias is not None:
            output = output + lift(bias, x)
        ctx.save_for_backward(input, weight, mean, divisor, index, slope)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.deviation, ctx.carry = deviation, carry
        ctx.mark_non_differentiable(mean, sigma)
        return output, mean, sigma

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor, _mean: Tensor, _sigma: Tensor
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, divisor, index, slope = ctx.saved_tensors
        x = wide(input)
        others = [axis for axis in range(x.dim()) if axis != 1]
        centered = x - lift(mean, x)
        sum_gy = (grad_output * centered).sum(others) / divisor
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = sum_gy.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(others).to(ctx.bias_dtype)
        if ctx.needs_input_grad[0]:
            scale = 1 / divisor if weight is None else weight.to(x.dtype) / divisor
            grad = grad_output * lift(scale, x)
            grad_divisor = -sum_gy * scale  # d loss / d divisor, per channel
            if ctx.carry == "l2":
                # divisor * centered / sum(centered^2): grad_input loses its part along centered
                square = centered.square().sum(others)
                ratio = torch.where(square == 0, 0.0, grad_divisor * divisor / square)
                grad = grad + lift(ratio, x) * centered
            elif ctx.carry == "exact" and index is not None:
                grad = _add_at(grad, index, grad_divisor.unsqueeze(1) * slope)
            elif ctx.carry == "exact":
                dense = ctx.deviation.dense_slope(centered, lift(divisor, x))
                grad = grad + lift(grad_divisor, x) * dense
            # the mean's own gradient: the output does not see a shift of the channel
            grad_input = (grad - grad.mean(others, keepdim=True)).to(input.dtype)
        return grad_input, grad_weight, grad_bias, None, None, None


def _add_at(grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """grad (N, C, *S) with value (C, J) added at index (C, J) into each channel's N * S."""
    flat = grad.reshape(grad.shape[0], grad.shape[1], -1)
    space = flat.shape[2]
    channel = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    where = (index // space, channel, index % space)
    return flat.index_put(where, value, accumulate=True).reshape(grad.shape)


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
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        quantized = ctx.quantizer(grad_output, key=ctx.key, state=ctx.state, training=ctx.training)
        return quantized.dequantize().to(grad_output.dtype), None, None, None, None
