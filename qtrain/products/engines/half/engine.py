"""Products with a floating-point operand on the bf16 units of a CPU (AVX512-BF16)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers import QTensor, kernels
from quantizers.devices.by_device import register
from quantizers.kernels import team
from quantizers.kernels.serving import SOURCES, imported
from quantizers.qtensor import unshifted

from ...convolution import LAST, Convolution
from ...operations import BatchedMatmul, Linear, Operation
from ..epilogue import Epilogue
from ..float_units import RoundedSums
from ..task import Task

_FILE = f"{__package__}.compiled_half"
#: how the kernel numbers what b's elements are kept as
_KINDS = {**SOURCES, torch.int8: 3, torch.uint8: 4}


class Moves(NamedTuple):
    """How positions of a meet those of b, along two axes.

    across             positions of the kernel along the second
    rows, columns, height, width   sizes of a's space and of b's
    stride .. dilation_across      of the kernel
    """

    across: int = 1
    rows: int = 1
    columns: int = 1
    height: int = 1
    width: int = 1
    stride: int = 1
    stride_across: int = 1
    padding: int = 0
    padding_across: int = 0
    dilation: int = 1
    dilation_across: int = 1


class HalfUnits(RoundedSums):
    """Elements that bf16 holds, multiplied in bf16 units and summed in fp32: grad_weight of
    matrices and of convolutions of one or two axes.

    Subnormal elements and sums count as ever.  Operands so large, or floating-point ones so small,
    that those units could not hold a sum, NaN and infinities are left to fp32 units.
    """

    name = "bf16 units (float operand)"
    device_types = ("cpu",)
    half = torch.bfloat16
    takes_zero_point = True

    def __init__(self, smallest: int = 2**21, area: int = 1024) -> None:
        """smallest: multiplications, area: output channels times input channels of a group, from
        which it is faster than fp32 units (measured on two cores with AVX512-BF16)."""
        self.smallest, self.area = smallest, area

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if kind != "grad_weight" or task.unit is not None or task.half is not self.half:
            return False
        if isinstance(operation, Convolution):
            if operation.transposed or len(operation.stride) > 2:
                return False
        calls = task.multiplications
        if calls is not None:
            if calls < max(self.smallest, self.area * task.terms * operation.groups):
                return False
        return super().supports(task)

    def has_units(self, device_type: str) -> bool:
        units = imported("quantizers.kernels.compiled")
        return super().has_units(device_type) and units is not None and bool(units.has_bf16())

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
        left = QTensor(a, zero_point=zero_point)
        return self.of_quantized(task, left, QTensor(b), like, epilogue or Epilogue())

    def of_quantized(
        self, task: Task, a: QTensor, b: QTensor, like: Tensor, epilogue: Epilogue
    ) -> Tensor:
        operation = task.product.operation
        g, x, zero_point = a.unshifted(), b.elements, b.zero_point
        if x.dtype not in _KINDS or (zero_point is not None and zero_point.numel() > 1):
            x, zero_point = b.unshifted(), None
        scale, rest = epilogue.scale, epilogue
        if scale is not None:
            whole = scale.numel() == 1 and scale.dtype == torch.float32
            scale, rest = (scale, Epilogue()) if whole else (None, epilogue)
        kernel = list(like.shape[3:])
        how = _kind(operation), kernel, *_window(operation)
        result = None
        if g.dtype in SOURCES and x.dtype in _KINDS:
            run = _whole if torch.compiler.is_compiling() else _grad_weight
            result = run(g, x, zero_point, scale, *how)
        if result is None:
            return super().product(task, g, b.unshifted(), like, epilogue=epilogue)
        if kernel:  # (groups, out, *kernel, in)
            result = result.movedim(-1, 2)
            if like.shape[2] == 1 or like.stride(2) != 1:
                result = result.contiguous()
        return rest.applied_(operation, result)


def _kind(operation: Operation) -> int:
    """The groups of channels, 0 for a batch of matrices."""
    return 0 if isinstance(operation, BatchedMatmul) else operation.groups


def _window(operation: Operation) -> tuple[list[int], list[int], list[int]]:
    if not isinstance(operation, Convolution):
        return [], [], []
    return list(operation.stride), list(operation.padding), list(operation.dilation)


def _grad_weight(
    g: Tensor,
    x: Tensor,
    zero_point: Tensor | None,
    scale: Tensor | None,
    groups: int,
    kernel: Sequence[int],
    *window: Sequence[int],
) -> Tensor | None:
    """g: grad_output, of SOURCES; x: input, of _KINDS; zero_point: int32, scale: fp32, one number;
    groups: 0 for a batch of matrices -> fp32 (groups or batch, out, *kernel, in); None where the
    kernel does not serve them."""
    read = [g, x, *(t for t in (zero_point, scale) if t is not None)]
    kind = kernels.made(_FILE, "grad_weight", SOURCES[g.dtype], _KINDS[x.dtype])
    if kind is None or not kernels.serves(*read) or 0 in (*g.shape, *x.shape):
        return None
    moves = Moves()
    if kernel:
        g, x, moves = (*(t.contiguous(memory_format=LAST[t.dim()]) for t in (g, x)), moves)
        moves = _moves(g, x, kernel, *window)
        g, x = (t.movedim(1, -1).flatten(0, -2) for t in (g, x))
    elif groups:
        g, x = g.flatten(0, -2), x.flatten(0, -2)
    g, x = (t if t.stride(-1) == 1 else t.contiguous() for t in (g, x))
    if groups:
        items, count = groups, g.shape[0]
        rows, columns = g.shape[1] // groups, x.shape[1] // groups
        steps = rows, g.stride(0), columns, x.stride(0)
    else:
        (items, count, rows), columns = g.shape, x.shape[2]
        steps = g.stride(0), g.stride(1), x.stride(0), x.stride(1)
    if not kernel:
        moves = Moves(columns=count, width=count)
    units, threads = imported(_FILE), torch.get_num_threads()
    panels = items * math.prod(kernel) * -(-columns // units.COLUMNS)
    part = min(512, -(-rows // max(1, -(-threads // panels))))
    part = -(-part // units.ROWS) * units.ROWS
    result = g.new_empty((items, rows, *kernel, columns), dtype=torch.float32)
    blank = x.new_zeros(columns)
    if zero_point is not None:
        blank.copy_(zero_point.view(1))
    bytes_ = units.scratch(part)
    scratch = g.new_empty(bytes_ * threads, dtype=torch.uint8)
    beyond = ctypes.c_int32()
    found = [0 if t is None else t.data_ptr() for t in (g, x, blank, zero_point, scale, result)]
    words = (
        items, count, rows, math.prod(kernel), columns, part, *steps, *found,
        ctypes.addressof(beyond), scratch.data_ptr(), bytes_, *moves,
    )  # fmt: skip
    team.run(kind.address, team.packed(*words), result.numel() * count)
    return None if beyond.value else result


def _moves(g: Tensor, x: Tensor, kernel: Sequence[int], *window: Sequence[int]) -> Moves:
    """Of a convolution; along one axis, the second."""
    sizes = [list(g.shape[2:]), list(x.shape[2:]), *(list(part) for part in window)]
    alone = [1, 1, 1, 0, 1]
    pairs = [own if len(own) == 2 else [one, *own] for one, own in zip(alone, sizes, strict=True)]
    return Moves(kernel[-1], *(n for pair in pairs for n in pair))


def _operation(g: Tensor, x: Tensor, *how: Any) -> Tensor:
    """`_grad_weight` in a graph, by fp32 units where it has no kernel."""
    found = _grad_weight(g, x, *how)
    if found is not None:
        return found
    zero_point, scale, groups, kernel, *window = how
    own: Operation = Linear() if groups else BatchedMatmul()
    if kernel:
        stride, padding, dilation = map(tuple, window)
        own = Convolution(stride, padding, dilation, groups)
    like = _fake(g, x, *how)
    like = like.movedim(-1, 2) if kernel else like
    result = own.product("grad_weight", g.float(), unshifted(x, zero_point).float(), like)
    result = result if scale is None else result.mul_(scale)
    return result.movedim(2, -1).contiguous() if kernel else result


def _fake(
    g: Tensor, x: Tensor, zero_point: Any, scale: Any, groups: int, kernel: Any, *window: Any
) -> Tensor:
    if groups == 0:
        return g.new_empty((g.shape[0], g.shape[2], x.shape[2]), dtype=torch.float32)
    axis = 1 if kernel else -1
    sizes = groups, g.shape[axis] // groups, *kernel, x.shape[axis] // groups
    return g.new_empty(sizes, dtype=torch.float32)


_whole = register(
    "qtrain::half_grad_weight(Tensor g, Tensor x, Tensor? zero_point, Tensor? scale, int groups,"
    " int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    _operation, _fake, "CPU",
)  # fmt: skip
