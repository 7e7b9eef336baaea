"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calling import Calling, is_weight


def linear(call: Calling, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """weight (out, in); torch's own takes (in,) too."""
    if weight.dim() != 2 or input.dim() == 0:
        return call.plain()
    layer = call.layer("linear", (1, weight.shape[0], weight.shape[1]), weight)
    return call.plain() if layer is None else layer(input, weight, bias)


def linear_cross_entropy(
    call: Calling, input: Tensor, linear_weight: Tensor, target: Tensor, *,
    linear_bias: Tensor | None = None, ignore_index: int | None = None, options: Any = None,
    **loss: Any,
) -> Any:  # fmt: skip
    """Cross entropy of a linear layer; with options, in chunks: torch's."""
    classes = linear_weight.shape[:-1]
    shape = (*input.shape[:-1], *classes)
    if (
        options is not None
        or not classes
        or input.dim() not in (1, 2)[len(classes) > 1 :]
        or (linear_bias is not None and linear_bias.shape != classes)
        or (ignore_index is not None and target.shape == shape)
    ):
        return call.plain()  # torch says what is wrong
    layer = call.layer("linear", (1, classes.numel(), linear_weight.shape[-1]), linear_weight)
    if layer is None:
        return call.plain()
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = layer(input, linear_weight.flatten(0, -2), bias).reshape(shape)
    ignored = -100 if ignore_index is None else ignore_index
    return F.cross_entropy(logits, target, ignore_index=ignored, **loss)


def matmul(call: Calling, input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Any:
    """torch.matmul; operands of one axis as torch takes them, a matrix with one row or column.  A
    weight on the left multiplies the other's columns, as a linear layer its rows."""
    if out is not None or not (input.dim() and other.dim()):
        return call.plain()
    found = _product(call, input, other)
    return call.plain() if found is None else found


def _product(call: Calling, input: Tensor, other: Tensor) -> Tensor | None:
    """A product by the layer of a call's next, or None where that is left."""
    if other.dim() == 2 and is_weight(other):
        layer = call.layer("linear", (1, *other.t().shape), other)
        return None if layer is None else layer(input, other.t())
    if input.dim() == 2 and is_weight(input) and other.dim() > 1:
        layer = call.layer("linear", (1, *input.shape), input)
        return None if layer is None else layer(other.mT, input).mT.contiguous()
    layer = call.layer("matmul", (), other, input)
    return None if layer is None else _multiplied(layer, input, other)


def _multiplied(layer: nn.Module, input: Tensor, other: Tensor) -> Tensor:
    left = input if input.dim() > 1 else input.unsqueeze(0)
    right = other if other.dim() > 1 else other.unsqueeze(1)
    output: Tensor = layer(left, right)
    output = output if other.dim() > 1 else output.squeeze(-1)
    return output if input.dim() > 1 else output.squeeze(-1 if other.dim() == 1 else -2)


def reversed_matmul(call: Calling, other: Tensor, input: Tensor) -> Any:
    """other.__rmatmul__(input)."""
    return matmul(call, input, other)


def matrices(
    call: Calling, input: Tensor, mat2: Tensor, *, out: Tensor | None = None, **others: Any
) -> Any:
    """torch.mm, torch.bmm."""
    return call.plain() if others else matmul(call, input, mat2, out=out)


def mv(call: Calling, input: Tensor, vec: Tensor, *, out: Tensor | None = None) -> Any:
    """torch.mv; of a weight, a linear layer of the vector."""
    if input.dim() != 2 or vec.dim() != 1:
        return call.plain()
    if out is None and is_weight(input):
        return linear(call, vec, input)
    return matmul(call, input, vec, out=out)


def dot(
    call: Calling, input: Tensor, tensor: Any = None, *, other: Any = None, out: Any = None
) -> Any:
    """torch.dot, torch.vdot: a matrix product of a row and a column."""
    second = other if tensor is None else tensor
    if input.dim() != 1 or second.dim() != 1:
        return call.plain()
    return matmul(call, input, second, out=out)


def vecdot(call: Calling, x: Tensor, y: Tensor, *, dim: int = -1, out: Any = None) -> Any:
    """torch.linalg.vecdot: matrix products of rows and columns; dim is of their common shape."""
    if out is not None or not (x.dim() and y.dim()):
        return call.plain()
    layer = call.layer("matmul", (), y, x)
    if layer is None:
        return call.plain()
    x, y = torch.broadcast_tensors(x, y)
    left, right = x.movedim(dim, -1).unsqueeze(-2), y.movedim(dim, -1).unsqueeze(-1)
    return layer(left, right).squeeze((-2, -1))


def _added(
    call: Calling, input: Tensor, mat1: Tensor, mat2: Tensor, beta: Any, alpha: Any, others: Any,
    summed: bool = False,
) -> Any:  # fmt: skip
    if others or not isinstance(input, Tensor):
        return call.plain()
    if mat2.dim() == 2 and is_weight(mat2) and input.shape == mat2.shape[1:] and alpha == beta == 1:
        return linear(call, mat1, mat2.t(), input)
    product = _product(call, mat1, mat2)
    if product is None:
        return call.plain()
    product = product.sum(0) if summed else product
    product = product if alpha == 1 else alpha * product
    if beta == 0:  # not even a NaN of it
        return product.expand(torch.broadcast_shapes(input.shape, product.shape))
    return product + (input if beta == 1 else beta * input)


def addmm(
    call: Calling, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1,
    **others: Any,
) -> Any:  # fmt: skip
    """beta input + alpha mat1 mat2; with a weight and a vector, its bias."""
    return _added(call, input, mat1, mat2, beta, alpha, others)


def addmv(
    call: Calling, input: Tensor, mat: Tensor, vec: Tensor, *, beta: Any = 1, alpha: Any = 1,
    **others: Any,
) -> Any:  # fmt: skip
    """beta input + alpha mat vec; of a weight, a linear layer of the vector."""
    if mat.dim() != 2 or vec.dim() != 1:
        return call.plain()
    left, right = (vec, mat.t()) if is_weight(mat) else (mat, vec)
    return _added(call, input, left, right, beta, alpha, others)


def baddbmm(
    call: Calling, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1,
    **others: Any,
) -> Any:  # fmt: skip
    """The same, of batches."""
    return _added(call, input, batch1, batch2, beta, alpha, others)


def addbmm(
    call: Calling, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1,
    **others: Any,
) -> Any:  # fmt: skip
    """The same, summed over the batch."""
    return _added(call, input, batch1, batch2, beta, alpha, others, summed=True)
