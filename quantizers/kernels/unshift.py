"""From elements back to numbers, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.devices.memory import serves

from . import team
from .serving import TARGETS, made


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """elements - zero_point in fp32, in the elements' layout.

    elements: int8, uint8, int16 or int32; zero_point: int32, one entry.  None where no kernel
    serves them.
    """
    target = TARGETS.get(elements.dtype, 0)
    read = [elements] if zero_point is None else [elements, zero_point]
    if target == 0 or elements.numel() == 0 or not serves(*read):
        return None
    if zero_point is not None and (zero_point.dtype is not torch.int32 or zero_point.numel() != 1):
        return None
    result = torch.empty_like(elements, dtype=torch.float32)
    kernel = made("quantizers.kernels.compiled_elements", "unshift", target)
    if kernel is None or result.stride() != elements.stride():  # gaps or overlaps: it has none
        return None
    zero = 0 if zero_point is None else zero_point.data_ptr()
    words = team.packed(elements.numel(), elements.data_ptr(), result.data_ptr(), zero)
    team.run(kernel.address, words, elements.numel())
    return result
