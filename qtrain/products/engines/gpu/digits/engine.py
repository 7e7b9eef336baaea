"""Exact products of integers beyond int8 on the fp16 tensor cores of a GPU."""

from __future__ import annotations

from torch import Tensor

from ....convolution import Convolution
from ...engine import ZeroPoints
from ...epilogue import Epilogue
from ...geometry import Window
from ...task import Task
from ..convolved import convolved, on_two_axes, product_of
from ..engine import TritonEngine
from .convolution import KERNELS, convolve_digits
from .correlation import correlate_digits
from .digits import REACH


class TritonDigits(TritonEngine):
    """Integers of at most 17 bits, both zero points, the sum, scale and bias in few launches.

    What `TritonInt8` serves is left to it.
    """

    name = "triton_digits"
    kernels = KERNELS
    takes_zero_points = True

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if max(task.a.magnitude, task.b.magnitude) > REACH or task.bound >= 2**53:
            return False
        if isinstance(operation, Convolution):
            if len(operation.stride) > 2:
                return False
            if kind == "grad_weight":
                return True
        return task.a.magnitude > 255 or not task.b.within(-128, 127)

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
        return self.of_shifted(task, a, b, like, (None, None), epilogue)

    def of_shifted(
        self,
        task: Task,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        zero_points: ZeroPoints,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        operation, kind = task.product
        summed = isinstance(operation, Convolution) and kind == "grad_weight"
        run = _grad_weight if summed else _convolution
        result, done = run(task, a, b, like, zero_points, epilogue or Epilogue())
        if epilogue is None or done:
            return result
        return epilogue(operation, result)


def _convolution(
    task: Task, a: Tensor, b: Tensor, like: Tensor, zero_points: ZeroPoints, epilogue: Epilogue
) -> tuple[Tensor, bool]:
    """The product, and whether with its epilogue; of anything but a convolution's grad_weight."""
    operation, to = task.product.operation, convolved(task.product, a, b, like)
    # None where it varies along anything but channels
    scale = epilogue.scale_of(operation, to.channels) if epilogue.scales else None
    bias = None if scale is None or epilogue.bias is None else epilogue.bias.float()
    y: Tensor = convolve_digits(
        to.x, to.w, to.size, to.layout, *to.window, to.scattered, *zero_points,
        [task.a.magnitude, task.b.magnitude], scale, bias,
    )  # fmt: skip
    return product_of(y, task.product, a, like), scale is not None


def _grad_weight(
    task: Task, a: Tensor, b: Tensor, like: Tensor, zero_points: ZeroPoints, epilogue: Epilogue
) -> tuple[Tensor, bool]:
    """See _convolution."""
    operation = task.product.operation
    assert isinstance(operation, Convolution)
    window = on_two_axes(Window(operation.stride, operation.padding, operation.dilation))
    single = len(operation.stride) == 1
    if single:
        a, b, like = a.unsqueeze(2), b.unsqueeze(2), like.unsqueeze(3)
    pairs = [(a, zero_points[0], task.a.magnitude), (b, zero_points[1], task.b.magnitude)]
    small, large = pairs[::-1] if operation.transposed else pairs
    scale = epilogue.scale
    scale = scale.reshape(1) if scale is not None and scale.numel() == 1 else None
    y = correlate_digits(
        small[0], large[0], like, *window, operation.transposed, small[1], large[1],
        [small[2], large[2]], scale,
    )  # fmt: skip
    return y.squeeze(3) if single else y, scale is not None
