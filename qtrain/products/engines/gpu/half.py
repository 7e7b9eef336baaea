"""Products with a floating-point operand on the 16-bit tensor cores of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import QTensor
from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.serving import imported

from ...convolution import Convolution, is_channels_last
from ...operations import Operation
from ..epilogue import Epilogue
from ..float_units import RoundedSums
from ..task import Task
from .gradient import KERNELS, grad_weight_half


class TritonHalf(RoundedSums):
    """Elements that bf16, or fp16, holds, read as they are stored and multiplied in that; sums and
    scale in fp32, in one kernel or two.

    grad_weight of matrices and of convolutions of one or two axes, but for groups of few channels.
    fp64 elements are multiplied in fp64 as ever.
    """

    device_types = ("cpu",) if INTERPRETED else ("cuda",)
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
        return imported(KERNELS) is not None and super().admitted_on(device_type)

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
        return self.of_quantized(task, QTensor(a), QTensor(b), like, epilogue or Epilogue())

    def of_quantized(
        self, task: Task, a: QTensor, b: QTensor, like: Tensor, epilogue: Epilogue
    ) -> Tensor:
        if torch.float64 in (a.elements.dtype, b.elements.dtype):
            left, right = a.unshifted(), b.unshifted()
            return super().product(task, left, right, like, epilogue=epilogue)
        operation = task.product.operation
        (g, g_zero), (x, x_zero) = _read(a), _read(b)
        scale = epilogue.scale
        alone = scale is not None and scale.numel() == 1
        rest = epilogue._replace(scales=()) if alone else epilogue
        own = (scale.reshape(()) if alone and scale is not None else None,)
        if isinstance(operation, Convolution):
            return rest.applied_(
                operation, _of_convolution(operation, self.half, g, x, g_zero, x_zero, like, *own)
            )
        result: Tensor = grad_weight_half(
            _matrices(operation, g), _matrices(operation, x), [1, 1], False, [1, 1], [0, 0],
            [1, 1], self.half, g_zero, x_zero, *own,
        )  # fmt: skip
        return rest.applied_(operation, result[..., 0, 0])


def _read(q: QTensor) -> tuple[Tensor, Tensor | None]:
    """Elements, and the one number that is to be taken from all of them."""
    if q.zero_point is None:
        return q.elements, None
    if q.zero_point.numel() > 1:
        return q.unshifted(), None
    return q.elements, q.zero_point.reshape(())


def _matrices(operation: Operation, x: Tensor) -> Tensor:
    """(1, batch, columns, 1, rows) of matrices (batch, rows, columns), or (*, columns)."""
    whole = x if operation.weight_is_data else x.flatten(0, -2)[None]
    return whole.transpose(1, 2)[None, :, :, None]


def _of_convolution(
    operation: Convolution,
    half: torch.dtype,
    g: Tensor,
    x: Tensor,
    g_zero: Tensor | None,
    x_zero: Tensor | None,
    like: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """The canonical weight's gradient; g: grad_output, x: the input."""
    kernel, last = list(like.shape[3:]), is_channels_last(operation.raw(like))
    window = [list(n) for n in (operation.stride, operation.padding, operation.dilation)]
    if operation.transposed:  # the kernel moves over the output: it is what is gathered
        g, g_zero, x, x_zero = x, x_zero, g, g_zero
    g, x = (t.unflatten(1, (operation.groups, -1)) for t in (g, x))
    axes = len(kernel)
    if axes == 1:  # a single axis is the second of two
        g, x, kernel = g.unsqueeze(3), x.unsqueeze(3), [1, *kernel]
        window = [[own, *n] for own, n in zip((1, 0, 1), window, strict=True)]
    result: Tensor = grad_weight_half(g, x, kernel, last, *window, half, g_zero, x_zero, scale)
    result = result.squeeze(3) if axes == 1 else result
    return result.transpose(1, 2) if operation.transposed else result
