"""Exact sums of integers on floating-point units."""

from __future__ import annotations

from torch import Tensor

from quantizers.qtensor import unshifted

from .engine import Engine
from .plain_convolution import plain_product
from .task import Task, holds


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
        parts = -(-task.count // self._part(task))
        a, b = unshifted(a, zero_point), b.float()
        size = -(-task.count // max(parts, 1))
        dtype = holds(task.bound)
        total: Tensor | None = None
        if parts <= 1:
            total = plain_product(task.product, a, b, like)
        else:
            for start in range(0, task.count, size):
                length = min(size, task.count - start)
                left = task.product.narrow("a", a, start, length)
                right = task.product.narrow("b", b, start, length)
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


reference = Float64()
