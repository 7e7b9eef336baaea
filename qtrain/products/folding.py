"""A scale that differs from term to term of a sum, moved to the other operand."""

from __future__ import annotations

from torch import Tensor

from quantizers import QTensor

from .operands import Shape, lifted, lifted_shape
from .operations import Kind, Operand, Operation
from .plan import Sketch, planned, sketch


@planned
def _fold(operation: Operation, kind: Kind, q: Sketch, dims: int) -> tuple[bool, Shape]:
    """Whether the scale of operand b varies along the sum, and along axes of the output alone;
    its shape as a factor of a grad_output of `dims` axes, where that is all that changes."""
    operand: Operand = "b" if kind == "grad_input" else "a"  # of the forward
    split = operation.split_axis(kind, "b", len(q.shape))
    varying = {
        axis
        for axis, (size, block) in enumerate(zip(q.shape, q.block, strict=True))
        if block < size
    }
    summed = varying - operation.kept(kind, "b", len(q.shape))
    needed = any(axis != split or q.block[axis] == 1 for axis in summed)
    if not needed or not varying <= operation.kept("forward", operand, len(q.shape)):
        return False, None
    shape = lifted_shape(operation, "forward", operand, q)
    return True, None if shape is None else (1,) * (dims - len(shape)) + shape


def folded(
    operation: Operation, kind: Kind, grad_output: Tensor, b: QTensor
) -> tuple[Tensor | None, QTensor]:
    """What grad_output is to be multiplied by, broadcastable to it, and b without its scale, where
    the product cannot apply that itself.

    A scale that differs from term to term of a sum cannot multiply the result; where it varies
    only along axes that grad_output shares (the output's own), it multiplies grad_output before
    that is quantized.  Otherwise None, and b as it was.
    """
    if b.scale is None:
        return None, b
    foldable, shape = _fold(operation, kind, sketch(b), grad_output.dim())
    if not foldable:
        return None, b
    if shape is None:
        operand: Operand = "b" if kind == "grad_input" else "a"  # of the forward
        factor = lifted(operation, "forward", operand, b, b.scale)
        factor = factor.reshape([1] * (grad_output.dim() - factor.dim()) + list(factor.shape))
    else:
        factor = b.scale.reshape(shape)
    return factor, QTensor(b.elements, None, b.zero_point, b.format, b.block)
