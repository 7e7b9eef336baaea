"""A noise key folded in one launch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .device import WORDS, serves, there
from .launcher import Launch


@cache
def _launch(loaded: bool, advanced: bool) -> Launch:
    return Launch(WORDS, "fold", LOADED=loaded, ADVANCED=advanced, num_warps=1)


def fold(key: Tensor, value: int | Tensor, advance: bool = False) -> Tensor | None:
    """See noise.fold; advance: of one more than the value, a tensor, which becomes that."""
    loaded = isinstance(value, Tensor)
    if key.dim() or not serves(key, value if isinstance(value, Tensor) else None):
        return None
    if isinstance(value, Tensor) and value.dim():
        return None
    if isinstance(value, int):
        value = (value + 2**63) % 2**64 - 2**63  # as int64 holds it
    result = torch.empty_like(key)
    with there(key):
        _launch(loaded, advance)((1, 1, 1), key, result, value)
    return result
