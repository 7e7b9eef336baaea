"""Channels that stand out: the largest one's peak against the others'."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import QTensor

from .sampling import block, cropped

#: The fewest channels that have a median, and the fewest elements of each that have a peak.
_FEWEST = 4
#: How many elements are looked at.
_BLOCK = 2**14


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
    peaks = magnitude.amax([other for other in range(x.dim()) if other != axis]).float()
    peaks = peaks[torch.isfinite(peaks) & (peaks > 0)]
    return (peaks.max() / peaks.median()).item() if peaks.numel() >= _FEWEST else None
