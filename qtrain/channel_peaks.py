"""Channels that stand out: the largest one's peak against the others'."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers import QTensor

#: The fewest channels that have a median, and the fewest elements of each that have a peak.
_FEWEST = 4


def outlier(
    x: Tensor, q: QTensor, at: Tensor, shape: Sequence[int], axis: int
) -> float | None:
    """The largest channel's peak |x| / scale in units of the median channel's; channels that are
    0 throughout do not count.  None where fewer than four channels have four elements each.

    x, q: the elements of a tensor of `shape` at the places `at`, flat.
    """
    axis %= len(shape)
    count = shape[axis]
    if count < _FEWEST or x.numel() < _FEWEST * count:
        return None
    magnitude = x.detach().flatten().double().abs()
    if q.scale is not None:
        magnitude = magnitude / q.spread(q.scale).expand(x.shape).flatten().double()
    channel = at // math.prod(shape[axis + 1 :]) % count
    peaks = magnitude.new_zeros(count).scatter_reduce(0, channel, magnitude, "amax")
    peaks = peaks[torch.isfinite(peaks) & (peaks > 0)]
    if peaks.numel() < _FEWEST:
        return None
    return (peaks.max() / peaks.median()).item()
