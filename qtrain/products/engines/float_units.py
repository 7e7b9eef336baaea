"""Sums on floating-point units: exact ones of integers, and those of floating-point operands."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from quantizers.devices.numbers import in_dtype
from quantizers.qtensor import unshifted

from ...autograd.selective import shown
from .engine import Engine
from .epilogue import Epilogue
from .plain_convolution import full_precision, plain_product, tensor_float32
from .task import Promise, Task, holds


def _unsigned_zeros(sums: Tensor, task: Task) -> Tensor:
    """The sums without -0: 0 times a negative number, where a sum has few terms and no start."""
    return sums.add_(0.0) if task.terms < 16 else sums


class Float32(Engine):
    """fp32 units on sums cut so that each part stays within 2^24, the parts added as integers.

    Operands are limited to 2^8: bf16 and TF32 hold those exactly, so that no reduced-precision
    mode of the machine's fp32 units can touch the result.
    """

    name = "float32"
    takes_zero_point = True
    #: more parts than this cost more than float64
    max_parts = 16

    def _part(self, task: Task) -> int:
        """Indices per part."""
        one = task.per_index * task.magnitude * task.b.magnitude
        return min(2**24 // max(one, 1), max(task.count, 1))

    def supports(self, task: Task) -> bool:
        part = self._part(task)
        if max(task.magnitude, task.b.magnitude) > 2**8 or part < 1 or task.bound >= 2**53:
            return False
        return -(-task.count // part) <= self.max_parts

    def sums(
        self, task: Task, a: Tensor, b: Tensor, like: Tensor, zero_point: Tensor | None
    ) -> Tensor:
        a, b = unshifted(a, zero_point), b.float()
        if task.bound <= 2**24:
            return _unsigned_zeros(plain_product(task.product, a, b, like), task)
        parts = -(-task.count // self._part(task))
        size = -(-task.count // max(parts, 1))
        dtype = holds(task.bound)
        total: Tensor | None = None
        for left, right in task.product.parts(a, b, task.count, size):
            # like: its shape is the result's, which a cut of the sum leaves alone
            part = plain_product(task.product, left, right, like).to(dtype)
            total = part if total is None else total.add_(part)
        assert total is not None
        return _unsigned_zeros(total, task)


class Float64(Engine):
    """fp64 units: exact while the sum stays below 2^53, for every format."""

    name = "float64"

    def supports(self, task: Task) -> bool:
        return task.bound < 2**53

    def sums(
        self, task: Task, a: Tensor, b: Tensor, like: Tensor, zero_point: Tensor | None
    ) -> Tensor:
        total = plain_product(task.product, a.double(), b.double(), like)
        return _unsigned_zeros(total, task)


class RoundedSums(Engine):
    """Products with an operand that is not integer: torch's own, in fp32 units, in fp64 ones for
    fp64 elements, or in those that the task names.

    The result is of the operands' dtype, fp32 at least.
    """

    name = "torch (float operand)"
    promise: Promise = "float"

    def supports(self, task: Task) -> bool:
        return task.promise == self.promise

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
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        unit = task.unit or wide
        a, b = in_dtype(a, unit), in_dtype(b, unit)
        if task.unit == torch.float64:  # for sums that are exact there
            total = in_dtype(plain_product(task.product, a, b, like), wide)
        else:
            with self.mode() if a.is_cuda else nullcontext():
                total = in_dtype(shown(operation.product, kind, a, b, like), wide)
        return total if epilogue is None else epilogue.applied_(operation, total)

    def mode(self) -> AbstractContextManager[Any]:
        """Of a CUDA device's fp32 units."""
        return full_precision()


class TensorFloat32(RoundedSums):
    """TF32 units, whose operands have 11 significant bits, for elements that have no more; fp64
    elements are multiplied in fp64 as ever."""

    name = "tf32 units (float operand)"
    device_types = ("cuda",)

    def supports(self, task: Task) -> bool:
        held = task.significant is not None and task.significant <= 11
        plain = task.unit is None and not torch.compiler.is_compiling()
        return super().supports(task) and held and plain

    def mode(self) -> AbstractContextManager[Any]:
        return tensor_float32()


reference = Float64()
