"""Exact integer products of matrices, alone or in batches: int8 matrix products on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.devices.by_device import register

from ..operations import BatchedMatmul, Linear
from .engine import Engine
from .epilogue import Epilogue
from .task import Task
from .unfolded import matrices, multiplies_int8, plain


class MatricesInt8(Engine):
    """int8 times int8, summed in int32 by torch._int_mm for each matrix of the batch.

    A zero point of a meets the sums of b's columns.  Small matrices it leaves to others: a call
    costs as much as they do.
    """

    name = "matrices_int8"
    device_types: tuple[str, ...] = ("cpu",)
    takes_zero_point = True

    def __init__(self, smallest: int = 2**19, terms: int = 64) -> None:
        """smallest, terms: multiplications in a matrix, and terms of a sum, from which it is
        faster than fp32 units (measured with one thread and two)."""
        self.smallest, self.terms = smallest, terms

    def supports(self, task: Task) -> bool:
        if not isinstance(task.product.operation, Linear | BatchedMatmul):
            return False
        if task.multiplications is not None and (
            task.terms < self.terms or task.multiplications < self.smallest
        ):
            return False
        eight = task.a.within(0, 255) or task.a.within(-128, 127)
        # units without signed operands take codes of 0 .. 255
        raw = task.terms * 255 * task.b.magnitude
        return eight and task.b.within(-128, 127) and max(raw, task.bound) < 2**31

    def has_units(self, device_type: str) -> bool:
        return super().has_units(device_type) and multiplies_int8(device_type)

    def product(
        self,
        task: Task,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        operation, kind = task.product
        left, right = matrices(task.product, a, b)
        shift = None if zero_point is None else zero_point.reshape(()).to(torch.int32)
        if not task.a.within(-128, 127):
            left = (left.to(torch.uint8) ^ 128).view(torch.int8)
            shift = right.new_full((), -128, dtype=torch.int32) if shift is None else shift - 128
        left, right = left.to(torch.int8), right.to(torch.int8)
        run = _whole if torch.compiler.is_compiling() else _matrices
        total: Tensor = run(left, right)
        if shift is not None:
            shift = right.sum(1, keepdim=True, dtype=torch.int32) * shift
        if isinstance(operation, Linear) and kind != "grad_weight":
            total = total.view(*a.shape[:-1], total.shape[-1])
            shift = None if shift is None else shift.view(-1)
        if epilogue is None:
            return total if shift is None else total - shift
        return epilogue(operation, total, shift)


def _matrices(a: Tensor, b: Tensor) -> Tensor:
    """a: int8 (batch, M, K), b: int8 (batch, K, N) -> int32 (batch, M, N)."""
    shape = a.shape[0], a.shape[1], b.shape[2]
    if not (a.numel() and b.numel()):
        return a.new_zeros(shape, dtype=torch.int32)
    result = a.new_empty(shape, dtype=torch.int32)
    rows = zip(plain(a).unbind(), plain(b).unbind(), result.unbind(), strict=True)
    for left, right, out in rows:
        torch._int_mm(left, right, out=out)
    return result


def _fake(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]), dtype=torch.int32)


_whole = register("qtrain::matrices_int8(Tensor a, Tensor b) -> Tensor", _matrices, _fake, "CPU")
