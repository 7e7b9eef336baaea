"""Rounding errors in units of the quantization step: biased, too large, shared along an axis."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .error_sums import outside
from .sampling import cropped

#: The fewest means along an axis from which their variance is estimated.
_FEWEST = 8
#: Elements that are looked at for errors that neighbours share.
_BLOCK = 4096
#: fp32 quotients and products of up to 16 bits, in steps.
_EXACT = 0.01


class Rounded(NamedTuple):
    """What became of the elements of a sample that lie within the representable interval; all 0
    where none does.

    offset         mean error in steps: up, or outward (times the sign of x), whichever lies further
                   from 0 for its standard error.  What nearest rounding would give is taken off,
                   where that leaves less: data of few values has a mean of its own
    offset_error   its standard error; 0 where every element goes to the nearest, or to one that is
                   hardly further: there errors follow from the values
    spread         root mean square error in steps: 0.29 for the nearest, 0.41 for stochastic
                   rounding of even fractions
    reach          the interval that all of x takes, in units of the representable: above 1 it
                   clips.  None where there is no scale
    """

    offset: float
    offset_error: float
    spread: float
    reach: float | None


def steps_of(q: QTensor) -> Tensor:
    """The distance from each element's value to the next, fp64, broadcastable to the elements; q:
    quantized."""
    scale = torch.ones((), dtype=torch.float64, device=q.elements.device)
    if q.scale is not None:
        scale = q.spread(q.scale).double()
    if q.format is None or isinstance(q.format, IntFormat):
        return scale
    elements = q.elements.double()
    low = q.format.min_exponent
    exponent = (torch.frexp(elements).exponent - 1).clamp(min=low)  # frexp: 0.5 <= |m| < 1
    exponent = torch.where(elements == 0, low, exponent)
    return scale * torch.ldexp(torch.ones_like(elements), exponent - q.format.mantissa)


def _errors(x: Tensor, q: QTensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, its error and the error of nearest rounding, in steps, fp64."""
    step = steps_of(q)
    position = x.detach().double() / step
    error = q.dequantize().double() / step - position
    return position, error, position.round() - position


def rounded(x: Tensor, q: QTensor) -> Rounded | None:
    """None for a tensor that is not quantized, or empty.  x, q: of the same shape."""
    if q.format is None or x.numel() == 0:
        return None
    position, error, nearest = _errors(x, q)
    reach = _reach(x, q)
    within = torch.isfinite(error) & ~outside(x, q)
    error, nearest, sign = error[within], nearest[within], position[within].sign()
    if error.numel() == 0:
        return Rounded(0.0, 0.0, 0.0, reach)
    beyond = error - nearest
    beyond = torch.where(beyond.abs() < _EXACT, 0.0, beyond)
    other = beyond != 0
    near = not bool(other.any()) or error[other].abs().mean().item() < 0.6
    found = []
    for direction in (torch.ones_like(sign), sign):
        means = [_mean(error * direction), _mean(beyond * direction)]
        mean, deviation = min(means, key=lambda m: abs(m[0]))
        found.append((mean, 0.0 if near else deviation))
    offset, deviation = max(found, key=lambda m: abs(m[0]) - 4 * m[1])
    spread = math.sqrt(error.square().mean().item())
    return Rounded(offset, deviation, spread, reach)


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    count = values.numel()
    deviation = values.std(correction=0).item() / math.sqrt(count)
    return values.mean().item(), deviation


def _reach(x: Tensor, q: QTensor) -> float | None:
    if q.scale is None or q.format is None:
        return None
    codes = x.detach().double() / q.spread(q.scale).double()
    codes = codes[~torch.isnan(codes)]  # 0 / 0, and what is no number
    if codes.numel() == 0:
        return None
    low, high = min(codes.min().item(), 0.0), max(codes.max().item(), 0.0)
    if isinstance(q.format, IntFormat) and not q.format.symmetric:
        return (high - low) / (q.format.high - q.format.low)
    return max(-low, high) / q.format.largest


def shared_noise(x: Tensor, q: QTensor) -> list[float] | None:
    """How far the noise of a rounding is one along each axis: the correlation of errors, less three
    standard errors, at least 0.  None for a tensor that is not quantized.

    With n errors along an axis, n * var(mean error) / var(error) is 1 where they are independent
    and n where they are one.  Errors are compared as they are and outward; of a sub-block of x.
    Rounding to the nearest has no noise: errors alike come from values alike.
    """
    if q.format is None or x.numel() == 0:
        return None
    at = cropped(x.shape, _BLOCK)
    scale, zero_point = (
        None if part is None else q.spread(part).expand(x.shape)[at]
        for part in (q.scale, q.zero_point)
    )
    block = QTensor(q.elements[at], scale, zero_point, q.format, (1,) * x.dim())
    position, error, nearest = _errors(x[at], block)
    within = (error.abs() < 1 + _EXACT) & ~outside(x[at], block)
    noisy = within & ((error - nearest).abs() > _EXACT)
    found = [0.0] * x.dim()
    count = int(within.sum())
    if int(noisy.sum()) < max(0.01 * count, 1):
        return found
    for direction in (1.0, position.sign()):
        e = torch.where(within, error * direction, 0.0)
        e = torch.where(within, e - e.sum() / count, 0.0)
        power = e.square().mean().item()
        for axis, n in enumerate(e.shape):
            if n == 1 or e.numel() // n < _FEWEST or power == 0:
                continue
            squares = n * e.mean(axis).square() / power
            deviation = squares.std().item() / math.sqrt(squares.numel())
            correlation = (squares.mean().item() - 1 - 3 * deviation) / (n - 1)
            found[axis] = max(found[axis], correlation)
    return found
