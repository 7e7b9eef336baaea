"""Exact integer products as int8 matrix products of unfolded codes, on CPU and CUDA.

Its speed on CUDA was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..convolution import Convolution
from ..operations import BatchedMatmul, Linear
from ..product import Product
from .engine import Engine
from .geometry import Window, cropped, dense, reduced, scatter
from .task import Task

#: bytes of unfolded codes in memory at once
_CHUNK = 2**28


class UnfoldedInt8(Engine):
    """int8 times int8, summed in int32 by torch._int_mm; convolutions in chunks of the batch.

    Batches of matrices it leaves to others, and small products.
    """

    name = "unfolded_int8"
    device_types: tuple[str, ...] = ("cpu", "cuda")

    def __init__(self, smallest: int = 2**23) -> None:
        """smallest: multiplications from which it is faster than fp32 units (measured on a CPU)."""
        self.smallest = smallest

    def supports(self, task: Task) -> bool:
        if isinstance(task.product.operation, BatchedMatmul):
            return False
        if task.multiplications is not None and task.multiplications < self.smallest:
            return False
        eight = task.a.within(-128, 127) and task.b.within(-128, 127)
        return eight and task.bound < 2**31

    def has_units(self, device_type: str) -> bool:
        return super().has_units(device_type) and multiplies_int8(device_type)

    def sums(
        self, task: Task, a: Tensor, b: Tensor, like: Tensor, zero_point: Tensor | None
    ) -> Tensor:
        a, b = a.to(torch.int8), b.to(torch.int8)
        operation, kind = task.product
        if not isinstance(operation, Convolution):
            left, right = matrices(task.product, a, b)
            total = _int_mm(left[0], right[0])
            return (
                total[None] if kind == "grad_weight" else total.view(*a.shape[:-1], total.shape[1])
            )
        if kind == "grad_weight":
            return _grad_weight(operation, a, b, like)
        shape = reduced(operation, kind, a, b, like)
        if shape.scattered is None:
            total = dense(_gather(shape.x, shape.w, shape.window), shape.channels_last)
        else:
            nothing = partial(shape.x.new_zeros, dtype=torch.int32)
            total = scatter(_gather, nothing, shape)
        return cropped(total, like) if kind == "grad_input" else total


def multiplies_int8(device_type: str) -> bool:
    """Whether torch._int_mm is fast: on CPUs by oneDNN with AVX-512; on others torch multiplies
    number by number, 22 times slower than fp32 units (AVX2, measured)."""
    if device_type != "cpu":
        return True
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and capability == "AVX512"


def matrices(product: Product, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Batches of matrices whose product it is; product: of anything but convolutions."""
    operation, kind = product
    if isinstance(operation, Linear):  # its weight is a batch of one already
        a = a.flatten(0, -2)[None]
        b = b.flatten(0, -2)[None] if kind == "grad_weight" else b
    if kind == "grad_weight":
        return a.transpose(1, 2), b
    return a, b.transpose(1, 2) if kind == "forward" else b


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    """a: int8 (M, K), b: int8 (K, N) -> int32 (M, N)."""
    if not (a.numel() and b.numel()):
        return a.new_zeros((a.shape[0], b.shape[1]), dtype=torch.int32)
    if a.device.type != "cuda":
        return torch._int_mm(plain(a), plain(b))
    # more than 16 rows, K and N multiples of 8, the summed axis contiguous in both
    (rows, summed), wide = a.shape, b.shape[1]
    a = F.pad(a, (0, -summed % 8, 0, max(17 - rows, 0))).contiguous()
    b = F.pad(b.t(), (0, -summed % 8, 0, -wide % 8)).contiguous().t()
    return torch._int_mm(a, b)[:rows, :wide]


def plain(x: Tensor) -> Tensor:
    """Matrices with one row, or column, after the other: torch._int_mm reads beyond, or in the
    wrong place, where they overlap (an unfolded view) or a length of 1 hides its stride."""
    rows, across = x.stride()[-2:]
    row_by_row = across == 1 and rows >= x.shape[-1]
    column_by_column = rows == 1 and across != 1 and across >= x.shape[-2]
    if row_by_row or column_by_column:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _columns(x: Tensor, window: Window, kernel: Sequence[int]) -> Tensor:
    """Every position's view of the input: the rows of a matrix, without converting its elements.

    x: (N, C, *S) of any dtype -> (N, *gathered, *kernel, C), a view where nothing is padded.
    """
    last = x.movedim(1, -1).contiguous()
    if any(window.padding):
        both = [p for p in reversed(window.padding) for _ in range(2)]
        last = F.pad(last, (0, 0, *both)).contiguous()
    size = window.gathered(x.shape[2:], kernel)
    batch, *space, channel = last.stride()
    moves = [step * s for step, s in zip(space, window.stride, strict=True)]
    taps = [step * d for step, d in zip(space, window.dilation, strict=True)]
    return last.as_strided(
        (x.shape[0], *size, *kernel, x.shape[1]), (batch, *moves, *taps, channel)
    )


def _chunks(x: Tensor, window: Window, kernel: Sequence[int]) -> Iterator[slice]:
    """Parts of the batch whose unfolded codes stay within _CHUNK bytes."""
    one = math.prod(window.gathered(x.shape[2:], kernel)) * math.prod(kernel) * x.shape[1]
    size = max(_CHUNK // max(one, 1), 1)
    if x.shape[0] <= size:  # the compiler makes one graph for all such batches
        return iter([slice(None)])
    return (slice(start, start + size) for start in range(0, x.shape[0], size))


def _gather(x: Tensor, w: Tensor, window: Window) -> Tensor:
    """x: int8 (N, groups * summed, *S), w: int8 (groups, produced, summed, *kernel)
    -> int32 (N, groups * produced, *gathered), its channels last in memory."""
    groups, produced, summed, *kernel = w.shape
    size = window.gathered(x.shape[2:], kernel)
    result = x.new_empty((x.shape[0], *size, groups, produced), dtype=torch.int32)
    matrices = w.movedim(2, -1).flatten(2)
    for chunk in _chunks(x, window, kernel):
        for group in range(groups):
            part = x[chunk, group * summed : (group + 1) * summed]
            count = part.shape[0] * math.prod(size)
            rows = _columns(part, window, kernel).reshape(count, matrices.shape[2])
            product = _int_mm(rows, matrices[group].t())
            result[chunk, ..., group, :] = product.view(part.shape[0], *size, produced)
    return result.flatten(-2).movedim(-1, 1)


def _grad_weight(operation: Convolution, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """a: int8 grad_output, b: int8 input -> int32, the canonical weight's shape."""
    window = Window(operation.stride, operation.padding, operation.dilation)
    small, large = (b, a) if operation.transposed else (a, b)
    groups, kernel = operation.groups, list(like.shape[3:])
    shape = (groups, small.shape[1] // groups, *kernel, large.shape[1] // groups)
    total = small.new_zeros(shape, dtype=torch.int32)
    for chunk in _chunks(large, window, kernel):
        for group in range(groups):
            one, other = (x[chunk].unflatten(1, (groups, -1))[:, group] for x in (small, large))
            within = (slice(size) for size in small.shape[2:])  # output padding beyond the stride
            rows = _columns(other, window, kernel)[(slice(None), *within)]
            left = one.movedim(1, -1).flatten(0, -2)
            rows = rows.flatten(0, small.dim() - 2).flatten(1)
            product = _int_mm(left.t(), rows)
            total[group] += product.view(shape[1:])
    total = total.movedim(-1, 2)
    return total.transpose(1, 2) if operation.transposed else total
