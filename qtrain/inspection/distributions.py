"""How a tensor's values are spread: by sign and binade, by code, and over its channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor
from quantizers.formats import Format
from quantizers.steps import as_real

from .pair import TensorPair
from .sampling import block, cropped

#: The binades 2^e <= |x| < 2^(e + 1) that have bins of their own; the end bins take what is beyond.
LOWEST, HIGHEST = -32, 15
#: Bins of `value_counts`: a negative and a positive one of each binade, and one for 0.
VALUE_BINS = 2 * (HIGHEST - LOWEST + 1) + 1
#: The fewest channels that have a median, and the fewest elements of each that have a peak.
_FEWEST = 4
#: One channel in so many is among the largest.
_SHARE = 16
#: How many elements are looked at.
_BLOCK = 2**14


def value_counts(x: Tensor) -> Tensor:
    """How many values lie in each bin, most negative first, zero in the middle: (97,) int64 on the
    CPU.  NaN and infinities are in none.

    Bin 48 + s * (e + 33) holds the values of sign s with 2^e <= |x| < 2^(e + 1), -32 <= e <= 15.
    """
    values = as_real(x.detach()).flatten()
    values = values[torch.isfinite(values)]
    binade = (torch.frexp(values).exponent - 1).clamp(LOWEST, HIGHEST)  # frexp: 0.5 <= |m| < 1
    place = VALUE_BINS // 2 + values.sign().long() * (binade - LOWEST + 1)
    return torch.bincount(place, minlength=VALUE_BINS).cpu()


def code_counts(q: QTensor) -> Tensor:
    """How many elements lie in each bin, lowest first: int64 on the CPU.

    IntFormat of up to 8 bits: one bin for each code from format.low to format.high; of more bits:
    256 bins of 2^(bits - 8) codes.  FloatFormat: `value_counts` of the elements, which are
    unscaled.  Nothing quantized: no bins.
    """
    if q.format is None:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    if not isinstance(q.format, IntFormat):
        return value_counts(q.elements)
    width = 2 ** max(q.format.bits - 8, 0)
    place = (q.elements.flatten().long() - q.format.low) // width
    count = (q.format.high - q.format.low) // width + 1
    return torch.bincount(place, minlength=count).cpu()


class Channels(NamedTuple):
    """What the largest channels do to the others, peaks in units of the channels' scales.

    outlier   the largest channel's peak in units of the median channel's; channels that are 0
              throughout do not count
    crowded   the share of their power that rounding takes of all channels but the largest
              sixteenth (at least one), less what it would take were their scale as much finer as
              their largest peak is smaller.  About 0 where they have scales of their own, or float
              elements that do not underflow; None without a scale, and where they are 0
    """

    outlier: float
    crowded: float | None


def channels(x: Tensor, q: QTensor, axis: int) -> Channels | None:
    """Measured in a sub-block with every channel.  None where fewer than four are other than 0, or
    have fewer than four elements each."""
    axis %= x.dim()
    some, part = block(x.detach(), q, cropped(x.shape, _BLOCK, keep=axis))
    count = some.shape[axis]
    if count < _FEWEST or some.numel() < _FEWEST * count:
        return None
    pair = TensorPair(some, part)
    divisor = torch.where(pair.scale == 0, torch.inf, pair.scale)  # of channels that are 0
    values, scale = (
        own.expand(some.shape).movedim(axis, 0).flatten(1) for own in (pair.x, divisor)
    )
    peaks, order = (values / scale).abs().amax(1).sort(descending=True)
    counting = peaks[torch.isfinite(peaks) & (peaks > 0)]
    if counting.numel() < _FEWEST:
        return None
    middle = counting[counting.numel() // 2]  # of two, the smaller
    largest = max(count // _SHARE, 1)
    finer = (peaks[largest] / peaks[0]).item()
    if q.scale is None or q.format is None or not 0 < finer <= 1:
        return Channels((counting[0] / middle).item(), None)
    values, scale = values[order[largest:]], scale[order[largest:]]
    taken = [_taken(values, own, q.format) for own in (scale, scale * finer)]
    return Channels((counting[0] / middle).item(), taken[0] - taken[1])


def _taken(x: Tensor, scale: Tensor, fmt: Format) -> float:
    """What rounding to nearest takes of the power of x: all of what is below half a step, of the
    rest step^2 / 12 each (Bennett 1948, Bell System Technical Journal 27: 446)."""
    step = scale * fmt.spacing(x / scale)
    power = x.square()
    lost = torch.where(x.abs() < step / 2, power, step.square() / 12)
    return (lost.sum() / power.sum()).item()
