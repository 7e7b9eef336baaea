"""A noise key folded in one launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .device import serves, there
from .launcher import Launch

KERNELS = "quantizers.kernels.gpu.triton_keys"


@lru_cache(maxsize=1024)
def _launch(value: int | None, advanced: bool) -> Launch:
    """value: None for one that is loaded."""
    numbers = () if value is None else (value,)
    return Launch(KERNELS, "fold", numbers, LOADED=value is None, ADVANCED=advanced, num_warps=1)


def fold(key: Tensor, value: int | Tensor, advance: bool = False) -> Tensor | None:
    """See noise.fold; advance: of one more than the value, a tensor, which becomes that."""
    other = value if isinstance(value, Tensor) else None
    if key.dim() or (other is not None and other.dim()) or not serves(key, other):
        return None
    result = torch.empty_like(key)
    with there(key):
        if isinstance(value, Tensor):
            _launch(None, advance)((1, 1, 1), key, result, value)
        else:  # as int64 holds it
            _launch((value + 2**63) % 2**64 - 2**63, False)((1, 1, 1), key, result)
    return result
