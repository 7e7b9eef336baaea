"""Exact integer products of batches of matrices: int8 matrix products, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from qtrain.operations import BatchedMatmul, Kind, Operation

from .unfolded import plain
from .work import Epilogue, Work

_LIBRARY = torch.library.Library("qtrain", "FRAGMENT")


class BatchedInt8:
    """int8 times int8, summed in int32 by torch._int_mm for each matrix of the batch.

    A zero point of a meets the sums of b's columns.  Small matrices it leaves to others: a call
    costs as much as they do.
    """

    name = "batched_int8"
    device_types: tuple[str, ...] = ("cpu",)
    takes_zero_point = True
    #: terms of a sum, and multiplications in a matrix, from which it is faster than fp32 units
    #: (measured with one thread and two)
    terms, multiplications = 64, 2**19

    def supports(self, operation: Operation, kind: Kind, work: Work) -> bool:
        if not isinstance(operation, BatchedMatmul):
            return False
        if work.matrix is not None and (
            work.count < self.terms or work.matrix < self.multiplications
        ):
            return False
        eight = work.a.within(0, 255) or work.a.within(-128, 127)
        # units without signed operands take codes of 0 .. 255
        raw = work.count * work.per_index * 255 * work.b.magnitude
        return eight and work.b.within(-128, 127) and max(raw, work.bound) < 2**31

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
        left = a.transpose(1, 2) if kind == "grad_weight" else a
        right = (b.transpose(1, 2) if kind == "forward" else b).to(torch.int8)
        shift: Tensor | int = 0 if zero_point is None else zero_point.reshape(()).to(torch.int32)
        if not work.a.within(-128, 127):
            left, shift = (left.to(torch.uint8) ^ 128).view(torch.int8), shift - 128
        run = torch.ops.qtrain.batched_int8 if torch.compiler.is_compiling() else _matrices
        total: Tensor = run(left.to(torch.int8), right)
        if isinstance(shift, Tensor) or shift:
            # modulo 2^32, from which the exact sum is far
            total.sub_(right.sum(1, keepdim=True, dtype=torch.int32) * shift)
        return total if epilogue is None else epilogue(operation, total)


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


_LIBRARY.define("batched_int8(Tensor a, Tensor b) -> Tensor")
_LIBRARY.impl("batched_int8", _matrices, "CPU")
torch.library.register_fake("qtrain::batched_int8", _fake, lib=_LIBRARY)
