"""The product of two scales in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import serves, there
from quantizers.kernels.serving import imported

from .convolve import KERNELS

_BLOCK = 1024


def times(a: Tensor, b: Tensor) -> Tensor | None:
    """See scales.times: of one number and any, or of two alike."""
    alone = a.numel() == 1, b.numel() == 1
    if not (all(alone) or any(alone) or a.shape == b.shape):
        return None
    if a.dtype is not torch.float32 or b.dtype is not torch.float32 or not serves(a, b):
        return None
    if not a.is_contiguous() or not b.is_contiguous():
        return None
    shape = torch.broadcast_shapes(a.shape, b.shape) or (1,)
    result = torch.empty(shape, dtype=torch.float64, device=a.device)
    size = result.numel()
    if size:
        with there(a):
            imported(KERNELS).times[(-(-size // _BLOCK),)](
                a, b, result, size, A=alone[0], B=alone[1], BLOCK=_BLOCK
            )
    return result
