"""Exact products of integers beyond int8 on the fp16 tensor cores of a GPU."""

from __future__ import annotations

from torch import Tensor

from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.serving import imported

from ....convolution import Convolution
from ....operations import BatchedMatmul, Operation
from ...engine import Engine, ZeroPoints
from ...epilogue import Epilogue
from ...geometry import Window, cropped, reduced
from ...task import Task
from ...unfolded import matrices
from .convolution import KERNELS, convolve_digits
from .correlation import correlate_digits
from .digits import REACH


class TritonDigits(Engine):
    """Integers of at most 17 bits, both zero points, the sum, scale and bias in few launches.

    What `TritonInt8` serves is left to it.
    """

    name = "triton_digits"
    device_types = ("cpu",) if INTERPRETED else ("cuda",)
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
        after = epilogue or Epilogue()
        if isinstance(task.product.operation, Convolution):
            if task.product.kind == "grad_weight":
                result, done = _grad_weight(task, a, b, like, zero_points, after)
            else:
                result, done = _convolution(task, a, b, like, zero_points, after)
        else:
            result, done = _matrices(task, a, b, zero_points, after)
        if epilogue is None or done:
            return result
        return epilogue(task.product.operation, result)


def _matrices(
    task: Task, a: Tensor, b: Tensor, zero_points: ZeroPoints, epilogue: Epilogue
) -> tuple[Tensor, bool]:
    """The product, and whether with its epilogue."""
    operation, kind = task.product
    left, right = matrices(task.product, a, b)
    x, w = left.transpose(1, 2)[None, :, :, None], right.transpose(1, 2)[..., None, None]
    scale, bias = _of_channels(epilogue, operation, w.shape[0] * w.shape[1])
    y = convolve_digits(
        x, w, [1, x.shape[4]], "matrices", [1, 1], [0, 0], [1, 1], False, *zero_points,
        _reach(task), scale, bias,
    )  # fmt: skip
    result: Tensor = y[0, :, :, 0].transpose(1, 2)
    if not isinstance(operation, BatchedMatmul) and kind != "grad_weight":
        result = result.reshape(*a.shape[:-1], result.shape[2])
    return result, scale is not None


def _convolution(
    task: Task, a: Tensor, b: Tensor, like: Tensor, zero_points: ZeroPoints, epilogue: Epilogue
) -> tuple[Tensor, bool]:
    """See _matrices; of the forward or grad_input."""
    operation, kind = task.product
    assert isinstance(operation, Convolution)
    shape = reduced(operation, kind, a, b, like)
    window, w = _plane(shape.window), shape.w
    x = shape.x.unflatten(1, (w.shape[0], -1))
    size = shape.scattered or shape.window.gathered(x.shape[3:], w.shape[3:])
    if x.dim() == 4:
        x, w, size = x.unsqueeze(3), w.unsqueeze(3), [1, *size]
    scale, bias = _of_channels(epilogue, operation, w.shape[0] * w.shape[1])
    y = convolve_digits(
        x, w, list(size), "channels_last" if shape.channels_last else "contiguous", *window,
        shape.scattered is not None, *zero_points, _reach(task), scale, bias,
    )  # fmt: skip
    result = (y.squeeze(3) if len(operation.stride) == 1 else y).flatten(1, 2)
    result = cropped(result, like) if kind == "grad_input" else result
    return result, scale is not None


def _grad_weight(
    task: Task, a: Tensor, b: Tensor, like: Tensor, zero_points: ZeroPoints, epilogue: Epilogue
) -> tuple[Tensor, bool]:
    """See _matrices; of a convolution."""
    operation = task.product.operation
    assert isinstance(operation, Convolution)
    window = _plane(Window(operation.stride, operation.padding, operation.dilation))
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


def _plane(window: Window) -> Window:
    """Of two axes: a single axis is the second."""
    if len(window.stride) == 2:
        return window
    return Window(*((n, *own) for n, own in zip((1, 0, 1), window, strict=True)))


def _reach(task: Task) -> list[int]:
    return [task.a.magnitude, task.b.magnitude]


def _of_channels(
    epilogue: Epilogue, operation: Operation, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and bias (fp32) of each channel; None for both where there is no scale, or it varies
    along anything else."""
    scale = epilogue.scale_of(operation, channels) if epilogue.scales else None
    if scale is None or epilogue.bias is None:
        return scale, None
    return scale, epilogue.bias.float()
