"""Products of tensors over named axes, as einsums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import einsum as letters
from .calling import Calling, is_weight
from .matrices import linear


def einsum(call: Calling, equation: Any, *operands: Any) -> Any:
    """Products of two operands, from the left to the right."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    shapes = [tuple(x.shape) for x in operands if isinstance(x, Tensor)]
    if not isinstance(equation, str) or len(operands) < 2 or len(shapes) < len(operands):
        return call.plain()  # of one, or as lists of axes
    first, comma, second = equation.partition(",")
    if len(operands) == 2 and comma and is_weight(operands[0]) and not is_weight(operands[1]):
        second, arrow, kept = second.partition("->")  # which is the same: a linear layer's
        equation, operands = f"{second},{first}{arrow}{kept}", operands[::-1]
        shapes = shapes[::-1]
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
        layer = call.layer("linear", (1, right.shape[2], right.shape[1]), b)
        found = None if layer is None else layer(left[0], right[0].t())
    else:
        layer = call.layer("matmul", (), b, a)
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


def inner(call: Calling, input: Tensor, other: Tensor, *, out: Any = None) -> Any:
    """torch.inner: an einsum over the last axis of both; of a weight, a linear layer."""
    if out is None and other.dim() == 2 and is_weight(other):
        return linear(call, input, other)
    if not (input.dim() and other.dim()) or input.shape[-1] != other.shape[-1]:
        return call.plain()  # of a number, none
    return tensordot(call, input, other, ([-1], [-1]), out)


def multi_dot(call: Calling, tensors: Sequence[Tensor], *, out: Any = None) -> Any:
    """torch.linalg.multi_dot: an einsum, from the left to the right, and not in the order in which
    fewer numbers would be multiplied."""
    last = len(tensors) - 1
    dims = [x.dim() for x in tensors]
    ends = [dims[0] if tensors else 0, dims[last] if tensors else 0]
    if out is not None or last < 1 or not {*ends} <= {1, 2} or {*dims[1:last]} - {2}:
        return call.plain()  # torch says what is wrong
    names = [letters.LETTERS[i : i + 2] for i in range(last + 1)]
    names[0], names[last] = names[0][2 - ends[0] :], names[last][: ends[1]]
    result = names[0][: ends[0] - 1] + names[last][1:]
    return einsum(call, f"{','.join(names)}->{result}", *tensors)


def chain_matmul(call: Calling, *matrices: Tensor, out: Any = None) -> Any:
    """torch.chain_matmul: the same."""
    return multi_dot(call, matrices, out=out)


def bilinear(
    call: Calling, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    """y_k = input1 W_k input2: a linear layer of input2, and a matrix product with input1."""
    outputs, first, second = weight.shape
    inner = call.layer("linear", (1, outputs * first, second), weight)
    outer = None if inner is None else call.layer("matmul")
    if outer is None:
        return call.plain()
    half = inner(input2, weight.reshape(outputs * first, second))
    found: Tensor = outer(half.unflatten(-1, (outputs, first)), input1.unsqueeze(-1)).squeeze(-1)
    return found if bias is None else found + bias
