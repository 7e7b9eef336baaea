"""A norm, forward and backward, in an arithmetic of few bits: the specification, operation by
operation.

With r(.) the rounding of the arithmetic's format, mean(.) and sum(.) its sums (`Arithmetic`), and
x, weight, bias and grad_output rounded when they are read:

    m = mean(x)                      0 where the norm is not centered
    c = r(x - m)
    d = r(divisor)                   from the statistic of c: r(mean(r(c * c))), r(mean(|c|)), or
                                     elements of c; what is computed once a channel, its constant,
                                     eps and root, is fp32 and rounded once
    y = r(c / d)
    output = r(r(y * weight) + bias)

    grad_bias = sum(g)               grad_weight = sum(r(g * y))
    h = r(g * weight)                p = r(h - mean(h))
    l2             q = mean(r(h * y)), times r(q * times^2);  grad_input = r(r(p - r(y * q)) / d)
    l1             k = r(constant * q), s = sign(c):  r(r(p - r(r(s - mean(s)) * k)) / d)
    linf, topk, range                t = sum(r(h * y)): p loses v = r(t * slope) at the few elements
                                     that made the statistic, and gains r(sum(v) / n) everywhere
    statistics_gradient l2           as l2, with q / mean(r(y * y));  detached: r(p / d)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantizers.devices.numbers import divided

from ..autograd.function_output import function_output
from .arithmetic import Arithmetic, kept, length, rows
from .normalize import Form
from .passes import wide
from .samples import Sample


class _RoundedRows(Sample):
    """Rows (C, M) of the format, whose statistics are in the arithmetic."""

    def __init__(self, rows: Tensor, arithmetic: Arithmetic) -> None:
        super().__init__(rows)
        self.arithmetic = arithmetic

    def mean_square(self) -> Tensor:
        squares = self.arithmetic.round(self.rows().square())
        return self.arithmetic.mean(squares, [1]).squeeze(1)

    def mean_magnitude(self) -> Tensor:
        return self.arithmetic.mean(self.rows().abs(), [1]).squeeze(1)


def _from_rows(matrix: Tensor, like: Tensor, over: Sequence[int]) -> Tensor:
    """The inverse of `rows`, for a tensor of `like`'s shape."""
    rest = [axis for axis in range(like.dim()) if axis not in over]
    order = [*rest, *over]
    back = [order.index(axis) for axis in range(like.dim())]
    return matrix.reshape([like.shape[axis] for axis in order]).permute(back)


class RoundedNorm(torch.autograd.Function):
    """x -> output, mean and sigma (as long as a row matrix has rows); differentiable in the output.

    weight, bias   broadcastable to x, or None
    fixed          (mean, divisor), broadcastable to x, in place of the statistics of x; or None
    over           the axes along which statistics are taken
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        fixed: tuple[Tensor, Tensor] | None,
        over: Sequence[int],
        form: Form,
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = form.arithmetic
        assert a is not None
        ctx.dtype = x.dtype
        x = a.round(wide(x))
        index = slope = None
        if fixed is not None:
            mean, divisor = (a.round(one.to(x.dtype)) for one in fixed)
            sigma = divisor
            centered = a.round(x - mean)
        else:
            mean = a.mean(x, over) if form.centered else x.new_zeros(kept(x, over))
            centered = a.round(x - mean)
            sigma, index, slope = form.deviation.of(_RoundedRows(rows(centered, over), a))
            divisor = a.round(form.deviation.stabilized(sigma, form.eps)).reshape(mean.shape)
        y = a.round(centered / divisor)
        output = y if weight is None else a.round(y * a.round(weight.to(x.dtype)))
        output = output if bias is None else a.round(output + a.round(bias.to(x.dtype)))
        ctx.save_for_backward(centered, weight, bias, divisor, index, slope)
        ctx.form, ctx.over, ctx.fixed = form, over, fixed is not None
        ctx.mark_non_differentiable(mean, sigma)
        return function_output(output.to(form.dtype)), mean, sigma

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centered, weight, bias, divisor, index, slope = ctx.saved_tensors
        a: Arithmetic = ctx.form.arithmetic
        y = a.round(centered / divisor)
        g = a.round(grad_output.to(y.dtype))
        grad_weight = grad_bias = None
        if weight is not None and ctx.needs_input_grad[1]:
            grad_weight = a.sum(a.round(g * y), _broadcast(weight, g)).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = a.sum(g, _broadcast(bias, g)).to(bias.dtype)
        grad_input = None
        if ctx.needs_input_grad[0]:
            h = g if weight is None else a.round(g * a.round(weight.to(g.dtype)))
            if not ctx.fixed:
                h = _through_statistics(h, y, centered, divisor, index, slope, ctx.over, ctx.form)
            grad_input = a.round(h / divisor).to(ctx.dtype)
        return grad_input, grad_weight, grad_bias, None, None, None


def _broadcast(parameter: Tensor, x: Tensor) -> list[int]:
    """The axes of x along which the parameter, of as many axes, is one number."""
    return [axis for axis in range(x.dim()) if parameter.shape[axis] == 1]


def _through_statistics(
    h: Tensor,
    y: Tensor,
    centered: Tensor,
    divisor: Tensor,
    index: Tensor | None,
    slope: Tensor | None,
    over: Sequence[int],
    form: Form,
) -> Tensor:
    """The gradient of y (h) as one of the input, times the divisor."""
    a, deviation = form.arithmetic, form.deviation
    assert a is not None
    p = a.round(h - a.mean(h, over)) if form.centered else h
    dense = deviation.dense if form.carry == "exact" else None
    if form.carry == "l2" or dense == "centered":
        q = a.mean(a.round(h * y), over)
        if form.carry == "l2":
            square = a.mean(a.round(y * y), over)
            q = torch.where(square == 0, 0.0, a.round(q / square))
        elif deviation.times != 1:  # the divisor's root is of times^2 mean(c^2)
            q = a.round(q * deviation.times**2)
        return a.round(p - a.round(y * q))
    if dense == "sign":
        count = length(h, over)
        constant = deviation.dense_factor(divisor, count) * count
        k = a.round(constant * a.mean(a.round(h * y), over))
        sign = centered.sign()
        if form.centered:
            sign = a.round(sign - a.mean(sign, over))
        return a.round(p - a.round(sign * k))
    if form.carry == "exact" and index is not None and slope is not None:
        total = a.sum(a.round(h * y), over).reshape(-1, 1)
        value = a.round(total * slope)
        matrix = rows(p, over).scatter_add(1, index, -value)
        if form.centered:
            matrix = a.round(matrix) + a.round(divided(value.sum(1, keepdim=True), matrix.shape[1]))
        return _from_rows(a.round(matrix), p, over)
    return p
