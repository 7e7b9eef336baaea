"""Rounding errors in units of the quantization step: biased, too large, shared along an axis."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .pair import TensorPair, in_steps
from .sampling import block, cropped

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
    noisy          whether a hundredth or more goes elsewhere than to the nearest, and further, and
                   not all up, down, toward or away from 0: there errors follow from the values, too
    """

    offset: float
    offset_error: float
    spread: float
    reach: float | None
    noisy: bool


def rounded(pair: TensorPair) -> Rounded | None:
    """None for a tensor that is not quantized in steps, or empty."""
    if not in_steps(pair.q) or pair.x.numel() == 0:
        return None
    reach = _reach(pair)
    position = pair.position
    error = pair.error / pair.step
    within = torch.isfinite(error) & ~pair.outside
    if not bool(within.all()):
        error, position = error[within], position[within]
    count = error.numel()
    if count == 0:
        return Rounded(0.0, 0.0, 0.0, reach, False)
    spread = math.sqrt(error.square().mean().item())
    beyond = error - (position.round() - position)
    # ties, as fp32 quotients have them, may go either way
    other = (beyond.abs() > _EXACT) & (error.abs() > 0.5 + position.abs() * 2.0**-22)
    noisy = int(other.sum())
    if noisy == 0:
        return Rounded(0.0, 0.0, spread, reach, False)
    beyond = torch.where(other, beyond, 0.0)
    near = (error.abs() * other).sum().item() / noisy < 0.6
    found = []
    for errors in ((error, beyond), (error * position.sign(), beyond * position.sign())):
        value, deviation = min(map(_mean, errors), key=lambda m: abs(m[0]))
        found.append((value, 0.0 if near else deviation))
    offset, deviation = max(found, key=lambda m: abs(m[0]) - 4 * m[1])
    random = not near and noisy >= 0.01 * count and not _directed(position, error)
    return Rounded(offset, deviation, spread, reach, random)


def _directed(position: Tensor, error: Tensor) -> bool:
    """Whether 99 in 100 elements go up, or down, toward 0 or away from it."""
    up, down = position.ceil(), position.floor()
    positive = position > 0
    targets = (up, down, torch.where(positive, down, up), torch.where(positive, up, down))
    off = [((error - (target - position)).abs() > _EXACT).double().mean() for target in targets]
    return min(off).item() <= 0.01


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    deviation, mean = torch.std_mean(values, correction=0)
    return mean.item(), deviation.item() / math.sqrt(values.numel())


def _reach(pair: TensorPair) -> float | None:
    fmt = pair.q.format
    if pair.q.scale is None or fmt is None:
        return None
    codes = pair.position if isinstance(fmt, IntFormat) else pair.x / pair.scale
    low, high = (end.item() for end in codes.aminmax())
    if math.isnan(low):  # 0 / 0, and what is no number
        codes = codes[~torch.isnan(codes)]
        if codes.numel() == 0:
            return None
        low, high = codes.min().item(), codes.max().item()
    low, high = min(low, 0.0), max(high, 0.0)
    if isinstance(fmt, IntFormat) and not fmt.symmetric:
        return (high - low) / (fmt.high - fmt.low)
    return max(-low, high) / fmt.largest


class Shared(NamedTuple):
    """How far the noise of a rounding is one along an axis.

    correlation   of the errors along it;  error: its standard error, were they independent
    """

    correlation: float
    error: float


def shared_noise(x: Tensor, q: QTensor) -> list[Shared]:
    """The correlation of rounding errors along each axis of a sub-block of x; 0 along one that
    allows no estimate.  q: quantized with noise; errors of nearest rounding are alike where values
    are.

    With n errors along an axis, n * var(mean error) / var(error) is 1 where they are independent
    and n where they are one.  Errors are compared as they are and outward (times the sign of x),
    whichever shows more.
    """
    pair = TensorPair(*block(x, q, cropped(x.shape, _BLOCK)))
    error, position = pair.error / pair.step, pair.position
    within = (error.abs() < 1 + _EXACT) & ~pair.outside
    count = max(int(within.sum()), 1)
    by_axis: list[list[Shared]] = [[] for _ in x.shape]
    for direction in (1.0, position.sign()):
        e = torch.where(within, error * direction, 0.0)
        e = torch.where(within, e - e.sum() / count, 0.0)
        for axis, n in enumerate(e.shape):
            if n > 1 and e.numel() // n >= _FEWEST:
                by_axis[axis].append(_correlation(e, axis, n))
    least = [Shared(0.0, 0.0)]
    return [max(own or least, key=lambda s: s.correlation - 3 * s.error) for own in by_axis]


def _correlation(e: Tensor, axis: int, n: int) -> Shared:
    squares = e.square()
    power = squares.mean(axis)
    total = power.sum().item()
    if total == 0:
        return Shared(0.0, 0.0)
    ratio = n * e.mean(axis).square().sum().item() / total
    # the variance of n * mean^2 of independent errors: 2 power^2, and what a fourth moment adds
    variance = 2 * power.square() + squares.square().mean(axis) / n
    deviation = math.sqrt(variance.sum().item()) / total
    return Shared((ratio - 1) / (n - 1), deviation / (n - 1))
