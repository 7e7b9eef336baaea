"""Exact products of int8 operands on the tensor cores of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.serving import imported

from ...convolution import Convolution
from ...operations import BatchedMatmul
from ..engine import Engine
from ..epilogue import Epilogue
from ..geometry import Window, cropped, reduced
from ..task import Task
from ..unfolded import matrices
from .convolve import KERNELS, convolve_int8

_POINT = Window((1, 1), (0, 0), (1, 1))


class TritonInt8(Engine):
    """int8 by int8 or uint8, summed in int32, scale and bias in the same kernel.

    Forward and grad_input of convolutions of one or two axes, all products of matrices.
    """

    name = "triton_int8"
    device_types = ("cpu",) if INTERPRETED else ("cuda",)
    takes_zero_point = True

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if isinstance(operation, Convolution):
            if kind == "grad_weight" or len(operation.stride) > 2:
                return False
        eight = task.a.within(-128, 127) or task.a.within(0, 255)
        return eight and task.b.within(-128, 127) and task.bound < 2**31

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
        operation, kind = task.product
        unsigned = not task.a.within(-128, 127)
        if unsigned and zero_point is None:
            zero_point = torch.zeros((), dtype=torch.int32, device=a.device)
        a, b = a.to(torch.uint8 if unsigned else torch.int8), b.to(torch.int8)
        window, scattered, layout = _POINT, None, "matrices"
        if isinstance(operation, Convolution):
            shape = reduced(operation, kind, a, b, like)
            window, scattered, w = shape.window, shape.scattered, shape.w
            layout = "channels_last" if shape.channels_last else "contiguous"
            x = shape.x.unflatten(1, (w.shape[0], -1))
            if x.dim() == 4:  # a single axis is the second of two
                x, w = x.unsqueeze(3), w.unsqueeze(3)
                fields = (window.stride, window.padding, window.dilation)
                window = Window(*((n, *own) for n, own in zip((1, 0, 1), fields, strict=True)))
                scattered = None if scattered is None else [1, *scattered]
        else:
            left, right = matrices(task.product, a, b)
            x, w = left.transpose(1, 2)[None, :, :, None], right.transpose(1, 2)[..., None, None]
        after = epilogue or Epilogue()
        scale, bias = after.of_channels(operation, w.shape[0], w.shape[1])
        size = scattered or window.gathered(x.shape[3:], w.shape[3:])
        y: Tensor = convolve_int8(
            x, w, list(size), layout, window.stride, window.padding, window.dilation,
            scattered is not None, zero_point, scale, bias,
        )  # fmt: skip
        if isinstance(operation, Convolution):
            result = (y.squeeze(3) if len(operation.stride) == 1 else y).flatten(1, 2)
            result = cropped(result, like) if kind == "grad_input" else result
        else:
            result = y[0, :, :, 0].transpose(1, 2)
            if not isinstance(operation, BatchedMatmul) and kind != "grad_weight":
                result = result.reshape(*a.shape[:-1], result.shape[2])
        if epilogue is None or scale is not None:
            return result
        return epilogue(operation, result)
