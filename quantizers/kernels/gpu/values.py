"""From elements back to numbers, in one pass."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..serving import is_dense
from .device import OPTIONS, serves, there
from .launcher import Launch

_KERNELS = "quantizers.kernels.gpu.triton_values"
_BLOCK = 4096


@lru_cache(maxsize=1024)
def _launch(size: int, affine: bool, scaled: bool, limited: bool) -> Launch:
    return Launch(
        _KERNELS, "values", (size,), AFFINE=affine, SCALED=scaled, LIMITED=limited, BLOCK=_BLOCK,
        num_warps=8, **OPTIONS,
    )  # fmt: skip


def values(
    elements: Tensor, scale: Tensor | None, zero_point: Tensor | None, limited: bool
) -> Tensor | None:
    """See qtensor.values: of one scale and one zero point, where no gradient is to flow."""
    differentiable = elements.requires_grad or (scale is not None and scale.requires_grad)
    if (
        (differentiable and torch.is_grad_enabled())
        or not serves(elements, scale, zero_point)
        or not is_dense(elements)
        or not 0 < elements.numel() < 2**31
        or (elements.is_floating_point() and elements.dtype is not torch.float32)
        or (zero_point is not None and zero_point.numel() != 1)
        or (scale is not None and (scale.numel() != 1 or scale.dtype is not torch.float32))
    ):
        return None
    result = torch.empty_like(elements, dtype=torch.float32)
    size = elements.numel()
    with there(elements):
        launch = _launch(size, zero_point is not None, scale is not None, limited)
        scale, zero_point = (elements if t is None else t for t in (scale, zero_point))
        launch((-(-size // _BLOCK), 1, 1), elements, result, zero_point, scale)
    return result


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """See qtensor.unshifted: of integers."""
    if elements.is_floating_point():
        return None
    return values(elements, None, zero_point, False)
