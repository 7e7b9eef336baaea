"""From elements back to numbers, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..serving import imported, is_dense
from .device import ELEMENTS, serves, there

BLOCK = 4096


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
        imported(ELEMENTS).unshift[(-(-size // BLOCK),)](
            elements,
            result,
            elements if zero_point is None else zero_point,
            size,
            AFFINE=zero_point is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return result
