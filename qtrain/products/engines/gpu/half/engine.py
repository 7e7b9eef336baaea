"""Products with a floating-point operand on the 16-bit tensor cores of a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers import QTensor
from quantizers.kernels.gpu.device import serves

from ....convolution import Convolution
from ....operations import BatchedMatmul, Linear
from ...epilogue import Epilogue
from ...float_units import RoundedSums
from ...geometry import Window
from ...task import Task
from ..convolved import on_two_axes
from ..engine import TritonEngine
from .gradient import grad_weight_half, gradient
from .plan import KERNELS


class TritonHalf(TritonEngine, RoundedSums):
    """Elements that bf16, or fp16, holds, read as they are stored and multiplied in that; sums and
    scale in fp32, in one kernel or two.

    grad_weight of matrices and of convolutions of one or two axes, but for groups of few channels.
    fp64 elements are multiplied in fp64 as ever.
    """

    kernels = KERNELS
    takes_zero_point = True

    def __init__(self, half: torch.dtype, smallest: int = 64) -> None:
        """smallest: output channels times input channels of a group, from which it is faster."""
        self.half: torch.dtype = half
        self.smallest = smallest
        self.name = "triton_bf16" if half is torch.bfloat16 else "triton_fp16"

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if kind != "grad_weight" or task.unit is not None or task.half is not self.half:
            return False
        if isinstance(operation, Convolution):
            if len(operation.stride) > 2:
                return False
            calls = task.multiplications
            if calls is not None and calls < self.smallest * task.terms * operation.groups:
                return False
        return super().supports(task)

    def admitted_on(self, device_type: str) -> bool:
        there = device_type == "cuda" and torch.cuda.is_available()
        old = there and torch.cuda.get_device_capability() < (8, 0)
        return not old and super().admitted_on(device_type)

    admitted_on._dynamo_marked_constant = True  # type: ignore[attr-defined]

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
        if torch.float64 in (a.elements.dtype, b.elements.dtype):
            left, right = a.unshifted(), b.unshifted()
            return super().product(task, left, right, like, epilogue=epilogue)
        operation = task.product.operation
        (g, g_zero), (x, x_zero) = _read(a), _read(b)
        kernel, last, window, single = list(like.shape[3:]), False, [], False
        if isinstance(operation, Convolution):
            within = 1 if operation.transposed else 2
            last = math.prod(kernel) > 1 and like.shape[within] > 1 and like.stride(within) == 1
            moves = on_two_axes(Window(operation.stride, operation.padding, operation.dilation))
            window, single = [n for own in moves for n in own], len(kernel) == 1
            if single:
                g, x, kernel = g.unsqueeze(2), x.unsqueeze(2), [1, *kernel]
        elif isinstance(operation, Linear) and g.dim() > 3:
            g, x = g.flatten(0, -2), x.flatten(0, -2)
        if operation.transposed:  # the kernel moves over the output: it is what is gathered
            g, g_zero, x, x_zero = x, x_zero, g, g_zero
        scale, rest = epilogue.scale, epilogue
        if scale is not None:
            scale, rest = (scale, Epilogue()) if scale.numel() == 1 else (None, epilogue)
        groups = 0 if isinstance(operation, BatchedMatmul) else operation.groups
        shifts = [zero for zero in (g_zero, x_zero, scale) if zero is not None]
        run = gradient if serves(g, x, *shifts) else grad_weight_half
        result: Tensor = run(g, x, groups, kernel, last, window, self.half, g_zero, x_zero, scale)
        result = result.squeeze(3) if single else result
        return rest.applied_(operation, result.transpose(1, 2) if operation.transposed else result)


def _read(q: QTensor) -> tuple[Tensor, Tensor | None]:
    """Elements, and the one number that is to be taken from all of them."""
    if q.zero_point is not None and q.zero_point.numel() > 1:
        return q.unshifted(), None
    return q.elements, q.zero_point
