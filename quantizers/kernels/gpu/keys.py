"""A noise key folded in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..serving import imported
from .device import ELEMENTS, serves, there


def fold(key: Tensor, value: int | Tensor) -> Tensor | None:
    """See noise.fold."""
    loaded = isinstance(value, Tensor)
    if key.dim() or not serves(key, value if isinstance(value, Tensor) else None):
        return None
    if isinstance(value, Tensor) and value.dim():
        return None
    if isinstance(value, int):
        value = (value + 2**63) % 2**64 - 2**63  # as int64 holds it
    result = torch.empty_like(key)
    with there(key):
        imported(ELEMENTS).fold[(1,)](key, value, result, LOADED=loaded, num_warps=1)
    return result
