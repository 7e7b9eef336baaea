"""A product as one of matrices, in which blocks along its sum are cut.

    result[i, j] = sum over k of left[i, k] right[j, k]

Linear layers and batches of matrices are that as they lie, leading axes taken for one in C order:

    forward      tokens x in   and  out x in       summed over in
    grad_input   tokens x out  and  in x out       summed over out
    grad_weight  out x tokens  and  in x tokens    summed over tokens

Convolutions: see `unfolding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quantizers import QTensor

from ..convolution import Convolution
from ..operations import Kind, Linear, Operand, Operation
from ..product import Product
from .rows import Rows, rows_of
from .unfolding import Unfolded


class Matrices(Protocol):
    """Of one product, of operands of known shapes."""

    def cut(self, operand: Operand, x: Tensor) -> Tensor:
        """An operand as (*batch, kept, summed), the view whose last axis blocks along the sum cut;
        `x` as the operation takes it."""

    def parts(self) -> Sequence[Matrices]:
        """Those of products that lie beside one another along the second axis, of which each needs
        less memory than all."""

    def rows(self, operand: Operand, q: QTensor, step: int) -> Rows:
        """The operand of the product that a quantized `cut` stands for, in steps along the sum."""

    def result(self, found: Tensor, like: Tensor) -> Tensor:
        """The operation's result, of the product's (*batch, i, j).  like: `Operation.product`'s."""


@dataclass(frozen=True)
class Plain:
    """Of a linear layer, or of batches of matrices."""

    operation: Operation
    kind: Kind

    def cut(self, operand: Operand, x: Tensor) -> Tensor:
        weight = operand == "b" and self.kind != "grad_weight"
        if isinstance(self.operation, Linear) and not weight:
            x = x.flatten(0, -2).unsqueeze(0)
        turned = weight if self.kind == "grad_input" else self.kind == "grad_weight"
        return x.transpose(1, 2) if turned else x

    def parts(self) -> Sequence[Matrices]:
        return (self,)

    def rows(self, operand: Operand, q: QTensor, step: int) -> Rows:
        return rows_of(q, step)

    def result(self, found: Tensor, like: Tensor) -> Tensor:
        if self.kind == "grad_weight":
            return found
        return found.view(*like.shape[:-1], found.shape[-1])


def matrices_of(
    product: Product, a: Sequence[int], b: Sequence[int], like: Sequence[int]
) -> Matrices:
    """Of a product of operands of these shapes, weights canonical; like: `Operation.product`'s."""
    operation, kind = product
    if not isinstance(operation, Convolution):
        return Plain(operation, kind)
    input, weight, output = {
        "forward": (a, b, None), "grad_input": (like, b, a), "grad_weight": (b, like, a)
    }[kind]  # fmt: skip
    return Unfolded.of(operation, kind, input, weight, output)


def turned(q: QTensor) -> QTensor:
    """A quantized matrix transposed."""
    scale, zero_point, outer = (
        None if part is None else part.transpose(-1, -2)
        for part in (q.scale, q.zero_point, q.outer)
    )  # fmt: skip
    *batch, kept, summed = q.block
    block = (*batch, summed, kept)
    return QTensor(q.elements.transpose(-1, -2), scale, zero_point, q.format, block, outer)


def restored(operation: Operation, operand: str, cut: Tensor, shape: Sequence[int]) -> Tensor:
    """What a forward operand's `cut` was made of: shape."""
    if not isinstance(operation, Convolution):
        return cut.reshape(list(shape))
    if operand == "weight":
        return cut.permute(0, 2, 3, 1).reshape(list(shape))  # groups, position, out, in
    pixels: Tensor = cut.unflatten(1, (shape[0], -1)).permute(1, 0, 3, 2)  # N, groups, channels
    return pixels.reshape(list(shape))
