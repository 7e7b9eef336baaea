"""The means of operands over their tokens, and their part of a product: see `Center`."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from quantizers.devices.numbers import divided
from quantizers.elements import as_real

from ..recipe import OPERANDS
from .operations import BatchedMatmul, Linear, Operation
from .product import Product


def centered(operation: Operation, operand: str, x: Tensor) -> Tensor:
    """An operand, a weight in its canonical view, less its mean over tokens: fp32, or fp64."""
    return as_real(x) - _mean(operation, operand, x)


def corrected(
    product: Product, operands: Collection[str], a: Tensor, b: Tensor, like: Tensor, result: Tensor
) -> Tensor:
    """The product of operands that were centered, with that of their means.

    operands: the names of those that were; a, b: both as they were before; like:
    `Operation.product`'s.
    """
    operation, kind = product
    first, second = OPERANDS[kind]
    left, right = a.double(), b.double()
    found: Tensor | None = None
    if first in operands:
        mean, other = _mean(operation, first, a).double(), right
        if kind == "grad_weight":
            other = _summed(operation, right)
        sample = like[:1] if kind == "grad_input" else like
        found = product.run(_once(operation, mean, a), other, sample)
        left = centered(operation, first, a).double()
    if second in operands:
        mean = _mean(operation, second, b).double()
        if kind == "grad_weight":
            left, mean = _summed(operation, left), _once(operation, mean, b)
        else:
            mean = mean.expand(b.shape)
        other = product.run(left, mean, like)
        found = other if found is None else found + other
    assert found is not None
    return result + found.to(result.dtype)


def _mean(operation: Operation, operand: str, x: Tensor) -> Tensor:
    """Over tokens, which stay as axes of one: fp32, or fp64."""
    axes = [1]
    if operand != "weight" and not isinstance(operation, BatchedMatmul):
        features = operation.channel_axis(x.dim())
        axes = [axis for axis in range(x.dim()) if axis != features]
    rows = x.double().movedim(axes, list(range(len(axes)))).flatten(0, len(axes) - 1)
    count = len(rows)
    while (length := len(rows)) > 1:  # in an order that the shape alone decides
        half = -(-length // 2)
        rows = torch.cat([rows[: length - half] + rows[half:], rows[length - half : half]])
    found = divided(rows.sum(0), max(count, 1))
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return found.reshape(shape).to(as_real(x[:0]).dtype)


def _once(operation: Operation, mean: Tensor, x: Tensor) -> Tensor:
    """The mean of x as one sample of it."""
    if isinstance(operation, Linear):
        return mean.flatten(0, -2)
    if isinstance(operation, BatchedMatmul):
        return mean
    return mean.expand(1, *x.shape[1:])


def _summed(operation: Operation, x: Tensor) -> Tensor:
    """All samples of x added up, as one."""
    if isinstance(operation, Linear):
        return x.flatten(0, -2).sum(0, keepdim=True)
    return x.sum(1 if isinstance(operation, BatchedMatmul) else 0, keepdim=True)
