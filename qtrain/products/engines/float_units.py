"""Exact sums of integers on floating-point units."""

from __future__ import annotations

from torch import Tensor

from quantizers.qtensor import unshifted

from ..operations import Kind, Operation
from .admission import Tried
from .engine import Work, holds
from .epilogue import Epilogue
from .plain_convolution import plain_product


def _unsigned_zeros(sums: Tensor, work: Work) -> Tensor:
    """The sums without -0: 0 times a negative number, where a sum has few terms and no start."""
    return sums.add_(0.0) if work.count * work.per_index < 16 else sums


class Float32(Tried):
    """fp32 units on sums cut so that each part stays within 2^24, the parts added as integers.

    Operands are limited to 2^8: bf16 and TF32 hold those exactly, so that no reduced-precision
    mode of the machine's fp32 units can touch the result.
    """

    name = "float32"
    device_types: tuple[str, ...] = ()  # any
    takes_zero_point = True
    #: more parts than this cost more than float64
    max_parts = 16

    def _part(self, work: Work) -> int:
        """Indices per part."""
        one = work.per_index * work.magnitude * work.b.magnitude
        return min(2**24 // max(one, 1), max(work.count, 1))

    def supports(self, operation: Operation, kind: Kind, work: Work) -> bool:
        part = self._part(work)
        if max(work.magnitude, work.b.magnitude) > 2**8 or part < 1 or work.bound >= 2**53:
            return False
        return -(-work.count // part) <= self.max_parts

    def product(
        self,
        operation: Operation,
        kind: Kind,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        work: Work,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        parts = -(-work.count // self._part(work))
        a, b = unshifted(a, zero_point), b.float()
        size = -(-work.count // max(parts, 1))
        dtype = holds(work.bound)
        total: Tensor | None = None
        if parts <= 1:
            total = plain_product(operation, kind, a, b, like)
        else:
            for start in range(0, work.count, size):
                length = min(size, work.count - start)
                part = plain_product(
                    operation,
                    kind,
                    operation.narrow(kind, "a", a, start, length),
                    operation.narrow(kind, "b", b, start, length),
                    like,  # its shape is the result's, which a cut of the sum leaves alone
                ).to(dtype)
                total = part if total is None else total.add_(part)
        assert total is not None
        total = _unsigned_zeros(total, work)
        return total if epilogue is None else epilogue(operation, total)


class Float64(Tried):
    """fp64 units: exact while the sum stays below 2^53, for every format."""

    name = "float64"
    device_types: tuple[str, ...] = ()  # any
    takes_zero_point = False

    def supports(self, operation: Operation, kind: Kind, work: Work) -> bool:
        return work.bound < 2**53 and not work.zero_point

    def product(
        self,
        operation: Operation,
        kind: Kind,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        work: Work,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        assert zero_point is None
        total = plain_product(operation, kind, a.double(), b.double(), like)
        total = _unsigned_zeros(total, work)
        return total if epilogue is None else epilogue(operation, total)


reference = Float64()
