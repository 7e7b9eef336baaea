"""Products with an operand that is not integer: torch's own, in floating point."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ...autograd.selective import shown
from .engine import Engine
from .epilogue import Epilogue
from .plain_convolution import full_precision
from .task import Promise, Task


class RoundedSums(Engine):
    """fp32 units, fp64 ones for fp64 elements, or those that the task names.

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
        with full_precision() if a.is_cuda else nullcontext():
            total = shown(operation.product, kind, a.to(unit), b.to(unit), like).to(wide)
        return total if epilogue is None else epilogue.applied_(operation, total)
