"""The scales and zero points of a product's operands, as the product sees them.

A scale that differs from term to term of a sum is moved to the other operand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers import QTensor, Quantizer
from quantizers.granularity import compact_shape

from ..recipe import OPERANDS, Recipe
from .operations import KINDS, Operand, Operation
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
    varying = [axis for axis, (size, block) in sizes if block < size]
    split, *others = along_sum
    needed = any(axis in others or (axis == split and q.block[axis] == 1) for axis in varying)
    if not needed or not all(axis in kept for axis in varying):
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


#: stands for the size of an axis that changes from batch to batch; no axis has it
_ANY = 2**31 - 1


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join('any' if size == _ANY else str(size) for size in shape)})"


def _check_scales(product: Product, operand: Operand, q: Sketch) -> int:
    """Block size of an operand along the cut axis; ValueError where a scale cannot be honoured."""
    _, summed = product.axes(operand, len(q.shape))
    split = summed[0]
    if q.scale is None:
        return q.shape[split]
    for axis, (size, block) in enumerate(zip(q.shape, q.block, strict=True)):
        if block < size and axis in summed and (axis != split or block == 1):
            kind = product.kind
            raise ValueError(
                f"{OPERANDS[kind][operand == 'b']} of {kind}: its scale varies along axis {axis} "
                f"of shape {_sizes(q.shape)}, which {kind} sums over, in blocks of {block}; "
                f"use a granularity that leaves this axis whole (Granularity(((axis, size),)); "
                f"axis {split} may be cut into blocks of more than 1), or give this product its "
                f"own quantizer: GradInput(weight=...), GradWeight(input=...)"
            )
    return q.block[split]


def is_cut(product: Product, a: Sketch, b: Sketch) -> bool:
    """Whether a scale varies along the sum, in blocks.

    Raises ValueError where it varies along the sum otherwise, or the sums' lengths differ.
    """
    kind = product.kind
    first, second = OPERANDS[kind]
    cut = product.split_axis("a", len(a.shape))
    step_a, step_b = _check_scales(product, "a", a), _check_scales(product, "b", b)
    count, _ = product.terms(a.shape, b.shape)
    taken = b.shape[product.split_axis("b", len(b.shape))]
    if taken != count:
        raise ValueError(
            f"{first} of {kind} has shape {_sizes(a.shape)}: {count} to sum "
            f"along axis {cut} (of each group), where the {second} takes {taken}"
        )
    channels = a.shape[cut]
    is_cut = min(step_a, step_b) < count
    if channels != count and (is_cut or step_a < channels):
        raise ValueError(
            f"{first} of {kind}: blocks along the sum (axis {cut} of {channels}) need "
            f"groups=1; leave the axis whole"
        )
    return is_cut


def refuse_unscalable(
    operation: Operation, recipe: Recipe, shapes: Sequence[Sequence[int | None]]
) -> None:
    """ValueError where a product of the operation cannot honour the scales of its operands, before
    any tensor is seen.

    shapes: of input, canonical weight and output, None for a size that changes.
    """
    sizes = [tuple(_ANY if size is None else size for size in shape) for shape in shapes]
    by_operand = dict(zip(("input", "weight", "grad_output"), sizes, strict=True))
    for kind in KINDS:
        a, b = (
            _sketch(
                recipe.slots[kind, operand].quantizer, by_operand[operand],
                operand != "weight" and "*" in operation.labels[0],
            )
            for operand in OPERANDS[kind]
        )  # fmt: skip
        if kind in recipe.cut or a is None or b is None:
            continue
        product = Product(operation, kind)
        if kind != "forward" and b.scale is not None:
            foldable, _ = _fold(product, b, len(a.shape))
            b = b._replace(scale=None) if foldable else b
        is_cut(product, a, b)


def _sketch(quantizer: object, shape: tuple[int, ...], leading: bool) -> Sketch | None:
    """Of what a quantizer makes of a tensor, which may have more leading axes; None where it names
    others than the first and the last then."""
    if type(quantizer) is not Quantizer or quantizer.range is None:
        return Sketch(shape, None, shape, None, None)
    granularity = quantizer.granularity
    low, high = (-1, 0) if leading else (-len(shape), len(shape) - 1)
    if any(not low <= axis <= high for axis, _ in granularity.sizes):
        return None
    block = granularity.block_shape(shape)
    return Sketch(shape, quantizer.format, block, compact_shape(shape, block), None)
