"""The product of two scales in one launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import serves, there
from quantizers.kernels.gpu.launcher import Launch

_KERNELS = "qtrain.products.engines.gpu.triton_scales"
_BLOCK = 1024


@lru_cache(maxsize=256)
def _launch(size: int, a: bool, b: bool) -> Launch:
    return Launch(_KERNELS, "times", (size,), A=a, B=b, BLOCK=_BLOCK)


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
            _launch(size, *alone)((-(-size // _BLOCK), 1, 1), a, b, result)
    return result
