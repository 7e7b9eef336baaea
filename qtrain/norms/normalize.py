"""What a batch-norm computes, forward and backward, outside autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import FloatFormat
from quantizers.devices.by_device import ByDevice
from quantizers.devices.numbers import divided

from .arithmetic import Arithmetic
from .deviations import Deviation
from .kernels.channels import channels as compiled
from .kernels.gpu.channels import channels as launched
from .passes import Affine, Channels, Extra, Slope, Sums, others
from .ranks import Ranks, Together
from .recipe import StatisticsGradient


class Form(NamedTuple):
    """How a norm is computed, besides its tensors.

    deferred     the output is not computed, see `Deferred`
    spec         (deviation, carry, activation) as a string: by_device.spec
    centered     whether the mean is subtracted
    arithmetic   of few bits, see `RoundedNorm`, or None
    ranks        whose batches are normalized as one; None: this process' alone
    """

    deviation: Deviation
    carry: StatisticsGradient
    eps: float
    relu: bool
    activation: FloatFormat | None
    dtype: torch.dtype
    deferred: bool = False
    spec: str | None = None
    centered: bool = True
    arithmetic: Arithmetic | None = None
    ranks: Ranks | None = None

    def affine(
        self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, sigma: Tensor
    ) -> Affine:
        """The output as a function of x."""
        of = folded(weight, bias, mean, self.deviation.stabilized(sigma, self.eps))
        return of._replace(activation=self.activation, relu=self.relu)


def _channels(
    x: Tensor,
    activation: FloatFormat | None = None,
    relu: bool = False,
    grad: Tensor | None = None,
) -> Channels:
    return Channels(x)


#: x's passes; what they make of an output, and whose gradient they read, are told for the choice
channels = ByDevice(_channels, cpu=compiled, cuda=launched)


def folded(weight: Tensor | None, bias: Tensor | None, mean: Tensor, divisor: Tensor) -> Affine:
    """(x - mean) / divisor * weight + bias as one multiplication and one addition."""
    dtype = divisor.dtype
    scale = 1 / divisor if weight is None else weight.to(dtype) / divisor
    shift = torch.zeros_like(divisor) if bias is None else bias.to(dtype)
    return Affine(mean.to(dtype), scale, shift.contiguous())


class Normalized(NamedTuple):
    """A norm's output, or its gradient, mean and sigma (C,), and where sigma's gradient goes, as
    Estimate's.

    where   of a deferred output besides, where that has no `where`: None, or the indices (C, 2) of
            each channel's extremes
    """

    output: Tensor
    mean: Tensor
    sigma: Tensor
    where: Tensor | None
    slope: Tensor | None


def normalize(input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form) -> Normalized:
    """x (N, C, *S) -> (x - mean) / divisor * weight + bias, then as `form` says."""
    by = channels(input, form.activation, form.relu)
    accumulated = torch.float64 if input.dtype == torch.float64 else torch.float32
    if form.centered:
        mean = input.mean(others(input), dtype=accumulated)
        mean = mean if form.ranks is None else form.ranks.averaged(mean)
    else:
        mean = input.new_zeros(input.shape[1], dtype=accumulated)
    sample = by.sample(mean)
    sample = sample if form.ranks is None else Together(sample, form.ranks)
    sigma, index, slope = form.deviation.of(sample)
    of = form.affine(weight, bias, mean, sigma)
    if form.deferred:  # one NaN for all: nothing but a layer's product can use it
        output = input.new_full((), float("nan"), dtype=form.dtype).expand(input.shape)
    else:
        output = by.affine(of, form.dtype)
    return Normalized(output, mean, sigma, index, slope)


def gradients(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, made: Normalized, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_input, grad_weight, grad_bias), the latter two in the dtype of the statistics, and this
    process' own.

    made: what `normalize` returned, with the output's gradient in its place.
    """
    grad_output, mean, sigma, index, slope = made
    by = channels(x, form.activation, form.relu, grad_output)
    deviation = form.deviation
    divisor = deviation.stabilized(sigma, form.eps)
    of = form.affine(weight, bias, mean, sigma)
    dense = deviation.dense if form.carry == "exact" else None
    extra: Extra = "squares" if form.carry == "l2" else "signs" if dense == "sign" else None
    grad_output = by.aligned(grad_output)
    total, product, more = by.sums(grad_output, of, extra)
    own = product / divisor, total
    if form.ranks is None:
        count = x.numel() // x.shape[1]
    else:
        count = form.ranks.total
        total, product, more = form.ranks.sums(Sums(total, product, more))
    product = product / divisor
    grad_divisor = -product * of.scale  # d loss / d divisor, per channel
    # the mean's own gradient: the output does not see a shift of the channel
    shift, along, value = -total * of.scale, None, None
    if form.carry == "l2":
        assert more is not None
        # divisor * centered / sum(centered^2): grad_input loses its part along centered
        ratio = torch.where(more == 0, 0.0, grad_divisor * divisor / more)
        along = Slope(ratio, "centered")
    elif dense is not None:
        along = Slope(grad_divisor * deviation.dense_factor(divisor, count), dense)
        shift = shift if more is None else shift - along.factor * more
    elif form.carry == "exact" and slope is not None:
        value = grad_divisor.unsqueeze(1) * slope
        shift = shift - value.sum(1)
    if not form.centered:
        shift = torch.zeros_like(shift)
    dtype = x.dtype if value is None else total.dtype
    grad_input = by.grad_input(grad_output, of, divided(shift, count), along, dtype)
    if value is not None and x.numel():
        assert index is not None
        if form.ranks is not None:
            index, value = form.ranks.held(index, value)
        grad_input = by.add_at(grad_input, index, value).to(x.dtype)
    return (grad_input, *own)
