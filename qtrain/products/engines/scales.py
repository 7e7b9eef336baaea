"""The product of two scales, which fp32 may not hold although the product of the operands fits.

fl24(a * b): 24 significant bits, ties to even, whatever the exponent.  Where that is a normal fp32
number it is fl32(a * b); elsewhere an fp64 number, whose product with an fp32 one is exact and is
rounded once to fp32, in the same pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import kernels

from .gpu.scales import times as launched

_SMALLEST = torch.finfo(torch.float32).smallest_normal
_INFINITY = float("inf")
#: of the 53 bits of an fp64 number, those beyond the first 24
_REST = 2**29 - 1


def times(a: Tensor, b: Tensor) -> Tensor:
    """fl24(a * b) of fp32 scales, broadcastable: fp32 where it is known to hold every one, else
    fp64, with one axis at least (a 0-d number would be taken in the other factor's dtype).

    Known is what lies in this process' memory: nothing waits for a device, and a compiled graph
    holds no branch.
    """
    made = launched(a, b) if a.is_cuda else None
    if made is not None:
        return made
    product = a * b
    known = kernels.serves(product)
    if known and product.numel():
        low, high = (product, product) if product.numel() == 1 else torch.aminmax(product)
        if low.item() >= _SMALLEST and high.item() < _INFINITY:
            return product
    bits = (a.double() * b.double()).view(torch.int64)  # exact
    wide = (bits + (_REST // 2) + ((bits >> 29) & 1)).bitwise_and_(~_REST).view(torch.float64)
    wide = wide if wide.dim() else wide.view(1)
    held = narrowed(wide) if known else None
    return wide if held is None else held


def narrowed(wide: Tensor) -> Tensor | None:
    """fp64 scales as fp32; None where that does not hold them all.  Reads their values."""
    narrow = wide.float()
    same = (narrow.double() == wide) | wide.isnan()
    return narrow if same.all().item() else None
