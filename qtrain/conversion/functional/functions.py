"""The functions that multiply, and which layers compute a call of them.

Each entry reads the arguments of its function and asks `Calling` for layers; where one of them is
left, the whole call is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.attention import QScaledDotProductAttention
from ...layers.calls import QConvolutionCall, QLinearCall, QTransposedConvolutionCall
from ...layers.matmul import QMatmul
from . import einsum as letters
from .calling import Calling, is_weight
from .convolutions import conv, conv_transpose

#: the layers, by the word that their names begin with
LAYERS: dict[str, type[nn.Module]] = {
    "linear": QLinearCall,
    "matmul": QMatmul,
    "conv": QConvolutionCall,
    "conv_transpose": QTransposedConvolutionCall,
    "attention": QScaledDotProductAttention,
}


def linear(call: Calling, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """weight (out, in); torch's own takes (in,) too."""
    if weight.dim() != 2 or input.dim() == 0:
        return call.plain()
    layer = call.layer("linear", (1, weight.shape[0], weight.shape[1]))
    return call.plain() if layer is None else layer(input, weight, bias)


def matmul(call: Calling, input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Any:
    """torch.matmul; operands of one axis as torch takes them, a matrix with one row or column."""
    if out is not None or not (input.dim() and other.dim()):
        return call.plain()
    if other.dim() == 2 and is_weight(other):
        return linear(call, input, other.t())
    layer = call.layer("matmul")
    if layer is None:
        return call.plain()
    left = input if input.dim() > 1 else input.unsqueeze(0)
    right = other if other.dim() > 1 else other.unsqueeze(1)
    output: Tensor = layer(left, right)
    output = output if other.dim() > 1 else output.squeeze(-1)
    return output if input.dim() > 1 else output.squeeze(-1 if other.dim() == 1 else -2)


def _reversed_matmul(call: Calling, other: Tensor, input: Tensor) -> Any:
    return matmul(call, input, other)


def matrices(
    call: Calling, input: Tensor, mat2: Tensor, *, out: Tensor | None = None, **others: Any
) -> Any:
    """torch.mm, torch.bmm."""
    return call.plain() if others else matmul(call, input, mat2, out=out)


def _added(
    call: Calling, input: Tensor, mat1: Tensor, mat2: Tensor, beta: Any, alpha: Any, others: Any
) -> Any:
    if others or not isinstance(input, Tensor):
        return call.plain()
    if mat2.dim() == 2 and is_weight(mat2):
        layer = call.layer("linear", (1, mat2.shape[1], mat2.shape[0]))
        if layer is None:
            return call.plain()
        if input.dim() == 1 and alpha == 1 and beta == 1:
            return layer(mat1, mat2.t(), input)
        product = layer(mat1, mat2.t())
    else:
        layer = call.layer("matmul")
        if layer is None:
            return call.plain()
        product = layer(mat1, mat2)
    if mat1.dim() == 3 and input.dim() == 2:  # addbmm
        product = product.sum(0)
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


def baddbmm(
    call: Calling, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1,
    **others: Any,
) -> Any:  # fmt: skip
    """The same, of batches; addbmm sums over these."""
    return _added(call, input, batch1, batch2, beta, alpha, others)


def einsum(call: Calling, equation: Any, *operands: Any) -> Any:
    """Products of two operands, from the left to the right."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    shapes = [tuple(x.shape) for x in operands if isinstance(x, Tensor)]
    if not isinstance(equation, str) or len(operands) < 2 or len(shapes) < len(operands):
        return call.plain()  # of one, or as lists of axes
    steps = letters.steps(equation, tuple(len(shape) for shape in shapes))
    if steps is None or not any(step.summed for step in steps):
        return call.plain()
    found: Tensor = operands[0]
    for step, other in zip(steps, operands[1:], strict=True):
        result = _contracted(call, step, found, other)
        if result is None:
            return call.plain()
        found = result
    return found


def _contracted(call: Calling, step: letters.Step, a: Tensor, b: Tensor) -> Tensor | None:
    """One product of an einsum; None where its layer is left."""
    if not step.summed:
        return torch.einsum(step.equation, a, b)
    weight = not step.batch and is_weight(b)
    left, right = step.matrices(a, b)
    if weight:  # (1, in, out)
        layer = call.layer("linear", (1, right.shape[2], right.shape[1]))
        found = None if layer is None else layer(left[0], right[0].t())
    else:
        layer = call.layer("matmul")
        found = None if layer is None else layer(left, right)
    return None if found is None else step.restored(found, a, b)


def tensordot(call: Calling, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Any:
    """As an einsum of the same axes."""
    if out is not None or isinstance(dims, Tensor):
        return call.plain()
    if isinstance(dims, int):
        first, second = list(range(a.dim() - dims, a.dim())), list(range(dims))
    else:
        first, second = ([axis] if isinstance(axis, int) else list(axis) for axis in dims)
    pairs = {(j % b.dim()): i % a.dim() for i, j in zip(first, second, strict=True)}
    left = letters.LETTERS[: a.dim()]
    fresh = iter(letters.LETTERS[a.dim() :])
    right = "".join(left[pairs[j]] if j in pairs else next(fresh) for j in range(b.dim()))
    kept = [x for x in left if x not in right] + [x for x in right if x not in left]
    return einsum(call, f"{left},{right}->{''.join(kept)}", a, b)


def bilinear(
    call: Calling, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    """y_k = input1 W_k input2: a linear layer of input2, and a matrix product with input1."""
    outputs, first, second = weight.shape
    inner = call.layer("linear", (1, outputs * first, second))
    outer = None if inner is None else call.layer("matmul")
    if outer is None:
        return call.plain()
    half = inner(input2, weight.reshape(outputs * first, second))
    found: Tensor = outer(half.unflatten(-1, (outputs, first)), input1.unsqueeze(-1)).squeeze(-1)
    return found if bias is None else found + bias


def attention(call: Calling, *args: Any, **kwargs: Any) -> Any:
    """F.scaled_dot_product_attention."""
    layer = call.layer("attention")
    return call.plain() if layer is None else layer(*args, **kwargs)


#: function, or tensor's method -> what reads its call
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.linalg.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    Tensor.__rmatmul__: _reversed_matmul,
    torch.mm: matrices,
    Tensor.mm: matrices,
    torch.bmm: matrices,
    Tensor.bmm: matrices,
    torch.addmm: addmm,
    Tensor.addmm: addmm,
    torch.baddbmm: baddbmm,
    Tensor.baddbmm: baddbmm,
    torch.addbmm: baddbmm,
    Tensor.addbmm: baddbmm,
    torch.einsum: einsum,
    torch.tensordot: tensordot,
    F.bilinear: bilinear,
    F.scaled_dot_product_attention: attention,
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv3d: conv,
    torch.conv1d: conv,
    torch.conv2d: conv,
    torch.conv3d: conv,
    F.conv_transpose1d: conv_transpose,
    F.conv_transpose2d: conv_transpose,
    F.conv_transpose3d: conv_transpose,
}
