"""From elements back to numbers, in one pass."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..serving import is_dense
from .device import WORDS, serves, there
from .launcher import Launch

BLOCK = 4096


@lru_cache(maxsize=1024)
def _launch(size: int, affine: bool) -> Launch:
    return Launch(WORDS, "unshift", (size,), AFFINE=affine, BLOCK=BLOCK, num_warps=8)


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """See qtensor.unshifted: of integers."""
    if (
        elements.is_floating_point()
        or not serves(elements, zero_point)
        or not is_dense(elements)
        or not 0 < elements.numel() < 2**31
        or (zero_point is not None and zero_point.numel() != 1)
    ):
        return None
    result = torch.empty_like(elements, dtype=torch.float32)
    size = elements.numel()
    with there(elements):
        launch = _launch(size, zero_point is not None)
        shift = elements if zero_point is None else zero_point
        launch((-(-size // BLOCK), 1, 1), elements, result, shift)
    return result
