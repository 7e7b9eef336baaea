"""How a tensor's values are spread: by sign and binade, by code, and over its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor
from quantizers.steps import as_real

from .sampling import block, cropped

#: The binades 2^e <= |x| < 2^(e + 1) that have bins of their own; the end bins take what is beyond.
LOWEST, HIGHEST = -32, 15
#: Bins of `value_counts`: a negative and a positive one of each binade, and one for 0.
VALUE_BINS = 2 * (HIGHEST - LOWEST + 1) + 1
#: The fewest channels that have a median, and the fewest elements of each that have a peak.
_FEWEST = 4
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


def outlier(x: Tensor, q: QTensor, axis: int) -> float | None:
    """The largest channel's peak |x| / scale in units of the median channel's, in a sub-block with
    every channel; channels that are 0 throughout do not count.  None where fewer than four are
    left, or have fewer than four elements each."""
    axis %= x.dim()
    some, part = block(x.detach(), q, cropped(x.shape, _BLOCK, keep=axis))
    count = some.shape[axis]
    if count < _FEWEST or some.numel() < _FEWEST * count:
        return None
    magnitude = some.abs()
    if part.scale is not None:
        magnitude = magnitude / part.scale
    if part.outer is not None:
        magnitude = magnitude / part.outer
    peaks = magnitude.amax([other for other in range(x.dim()) if other != axis]).float()
    peaks = peaks[torch.isfinite(peaks) & (peaks > 0)]
    return (peaks.max() / peaks.median()).item() if peaks.numel() >= _FEWEST else None
