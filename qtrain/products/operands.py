"""The two operands of a product, and their scales and zero points as the product sees them."""

from __future__ import annotations

from torch import Tensor

from quantizers import QTensor

from .operations import Kind, Operand, Operation


def pairs(a: QTensor, b: QTensor) -> tuple[tuple[Operand, QTensor], tuple[Operand, QTensor]]:
    """The two, each with its place in a product."""
    return ("a", a), ("b", b)


def lifted(
    operation: Operation, kind: Kind, operand: Operand, q: QTensor, compact: Tensor
) -> Tensor:
    """The operand's scale or zero point, broadcastable to the product."""
    spread = q.spread(compact)
    if spread.numel() > 1:
        kept = operation.kept(kind, operand, spread.dim())
        sizes = [s if i in kept else 1 for i, s in enumerate(q.elements.shape)]
        spread = spread if list(spread.shape) == sizes else spread.expand(sizes)
    return operation.lift(kind, operand, spread)
