"""The scales and zero points of a product's operands, as the product sees them.

A scale that differs from term to term of a sum is moved to the other operand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers import QTensor

from .operations import Operand
from .plan import Sketch, planned, sketches
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
    sizes, shape = _kept_shapes(product, operand, q.elements.shape)
    return spread.expand(sizes).reshape(shape)


@planned
def _kept_shapes(
    product: Product, operand: Operand, shape: torch.Size
) -> tuple[list[int], list[int]]:
    """An operand's shape, 1 along what is summed, and how that lies beside the product."""
    kept, _ = product.axes(operand, len(shape))
    sizes = [size if axis in kept else 1 for axis, size in enumerate(shape)]
    return sizes, product.lifted(operand, sizes)


def _in_forward(product: Product) -> tuple[Product, Operand]:
    """The forward, and which of its operands is b of this product."""
    return product._replace(kind="forward"), "b" if product.kind == "grad_input" else "a"


@planned
def _fold(product: Product, q: Sketch, dims: int) -> tuple[bool, Shape]:
    """Whether the scale of operand b varies along the sum, and along axes of the output alone;
    its shape as a factor of a grad_output of `dims` axes, where that is all that changes."""
    forward, operand = _in_forward(product)
    _, along_sum = product.axes("b", len(q.shape))
    kept, _ = forward.axes(operand, len(q.shape))
    sizes = enumerate(zip(q.shape, q.block, strict=True))
    varying = {axis for axis, (size, block) in sizes if block < size}
    split = min(along_sum)
    needed = any(axis != split or q.block[axis] == 1 for axis in varying & along_sum)
    if not needed or not varying <= kept:
        return False, None
    shape = lifted_shape(forward, operand, q)
    return True, None if shape is None else (1,) * (dims - len(shape)) + shape


def folded(product: Product, grad_output: Tensor, b: QTensor) -> tuple[Tensor | None, QTensor]:
    """What grad_output is to be multiplied by, broadcastable to it, and b without its scale, where
    the product cannot apply that itself.

    A scale that differs from term to term of a sum cannot multiply the result; where it varies
    only along axes that grad_output shares (the output's own), it multiplies grad_output before
    that is quantized.  Otherwise None, and b as it was.
    """
    if b.scale is None:
        return None, b
    (known,) = sketches(b)
    foldable, shape = _fold(product, known, grad_output.dim())
    if not foldable:
        return None, b
    if shape is None:
        factor = lifted(*_in_forward(product), b, b.scale)
        factor = factor.reshape([1] * (grad_output.dim() - factor.dim()) + list(factor.shape))
    else:
        factor = b.scale.reshape(shape)
    return factor, QTensor(b.elements, None, b.zero_point, b.format, b.block)
