"""A scale that differs from term to term of a sum, moved to the other operand."""

from __future__ import annotations

from torch import Tensor

from quantizers import QTensor

from .operands import Shape, lifted, lifted_shape
from .operations import Operand
from .plan import Sketch, planned, sketches
from .product import Product


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
