"""The two operands of a product, and their scales and zero points as the product sees them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers import QTensor

from .operations import Operand
from .plan import Sketch, planned
from .product import Product

#: of the two in a product
PLACES: tuple[Operand, Operand] = ("a", "b")
#: a scale's, or None where another shape is not all that it needs
Shape = tuple[int, ...] | None


@planned
def lifted_shape(product: Product, operand: Operand, q: Sketch) -> Shape:
    """The shape of the operand's scale, `lifted`, where that is nothing but another shape."""
    if q.scale is None or torch.compiler.is_compiling():
        return None
    if math.prod(q.scale) == 1:
        return ()
    parts = zip(q.shape, q.block, q.scale, strict=True)
    kept, _ = product.axes(operand, len(q.shape))
    for axis, (size, block, count) in enumerate(parts):
        if 1 < block < size or count != (size if axis in kept else 1):
            return None
    return tuple(product.lifted(operand, q.scale))


def lifted(product: Product, operand: Operand, q: QTensor, compact: Tensor) -> Tensor:
    """The operand's scale or zero point, broadcastable to the product."""
    spread = q.spread(compact)
    if spread.numel() == 1:
        return spread.reshape(())
    kept, _ = product.axes(operand, spread.dim())
    sizes = [size if axis in kept else 1 for axis, size in enumerate(q.elements.shape)]
    return spread.expand(sizes).reshape(product.lifted(operand, sizes))
