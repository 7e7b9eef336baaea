"""Exact products of int8 operands on the tensor cores of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from quantizers.by_device import register
from quantizers.kernels.gpu.device import INTERPRETED, OPTIONS, bound, kernels, there

from ...convolution import Convolution
from ...operations import BatchedMatmul, Operation
from ..engine import Engine
from ..epilogue import Epilogue
from ..geometry import Window, cropped, reduced
from ..task import Task
from ..unfolded import matrices

#: how a result (N, G, P, H, W) lies in memory: its axes, the outermost first
_Layout = Literal["contiguous", "channels_last", "matrices"]
_ORDERS: dict[str, tuple[int, ...]] = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 3, 4, 1, 2),
    "matrices": (0, 1, 3, 4, 2),
}
_KERNELS = "qtrain.products.engines.gpu.convolve"
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
        return kernels(_KERNELS) is not None and super().admitted_on(device_type)

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
        scale, bias = _inside(operation, x.shape[1] * w.shape[1], epilogue)
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


def _inside(
    operation: Operation, channels: int, epilogue: Epilogue | None
) -> tuple[Tensor | None, Tensor | None]:
    """Scale, one or one a channel, and bias of an epilogue that the kernel has; else None."""
    if epilogue is None or epilogue.scale is None:
        return None, None
    scale, bias = epilogue.scale, epilogue.bias
    if scale.numel() > 1:
        axis = operation.channel_axis(scale.dim())
        if not scale.numel() == scale.shape[axis] == channels:
            return None, None
    return scale.reshape(-1), None if bias is None else bias.float()


def _tiles(rows: int, produced: int, summed: int) -> tuple[int, int, int, int]:
    """Rows, columns and depth of a tile, and its warps."""
    deep = 128 if summed >= 256 else 64 if summed > 32 else 32
    across = 128 if produced >= 128 and rows >= 8192 else 64 if produced > 32 else 32
    tall = 128 if rows >= 4096 else 64
    return tall, across, deep, 8 if tall * across >= 128 * 128 else 4


def _result(x: Tensor, w: Tensor, size: Sequence[int], layout: str, scale: Tensor | None) -> Tensor:
    shape = [x.shape[0], w.shape[0], w.shape[1], *size]
    order = _ORDERS[layout]
    dtype = torch.int32 if scale is None else torch.float32
    y = torch.empty([shape[axis] for axis in order], dtype=dtype, device=x.device)
    return y.permute([order.index(axis) for axis in range(5)])


def _summed_last(x: Tensor) -> Tensor:
    """With the summed channels, axis 2, one after the other in memory."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def _convolve(
    x: Tensor,
    w: Tensor,
    size: list[int],
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scattered: bool,
    zero_point: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """x, w and what is returned, (N, G, P, *size), fp32 where there is a scale: see convolve."""
    launched = kernels(_KERNELS)
    y = _result(x, w, size, layout, scale)
    batch, groups, produced, out_height, out_width = y.shape
    rows, taps = batch * out_height * out_width, w.shape[3] * w.shape[4]
    if y.numel() == 0:
        return y
    w = _summed_last(w)
    unsigned = x.dtype is torch.uint8
    with there(x):
        if zero_point is None or (scattered and not unsigned):
            x = _summed_last(x)
        elif scattered:
            x = _prepared(x, zero_point, [0, 0])
        else:
            x, padding = _prepared(x, zero_point, padding), [0, 0]
        summed, (height, width) = x.shape[2], x.shape[3:]
        tall, across, deep, warps = _tiles(rows, produced, summed)
        blocks = -(-summed // deep)
        launched.convolve[(-(-rows // tall) * -(-produced // across), groups)](
            x,
            w,
            y,
            w if scale is None else scale,
            w if bias is None else bias.contiguous(),
            w if zero_point is None else zero_point,
            w if zero_point is None else w.sum((2, 3, 4), dtype=torch.int32),
            rows,
            produced,
            summed,
            height,
            width,
            out_height,
            out_width,
            *(x.stride(axis) for axis in (0, 1, 3, 4)),
            *(w.stride(axis) for axis in (0, 1, 3, 4)),
            *y.stride(),
            0 if scale is None or scale.numel() == 1 else 1,
            *stride,
            *padding,
            *dilation,
            w.shape[4],
            blocks,
            bound(taps * blocks),
            SCATTER=scattered,
            AFFINE=zero_point is not None,
            FILLED=zero_point is not None and scattered,
            UNSIGNED=unsigned,
            SCALED=scale is not None,
            BIASED=bias is not None,
            ROWS=tall,
            ACROSS=across,
            DEEP=deep,
            BAND=8,
            num_warps=warps,
            num_stages=3,
            **OPTIONS,
        )
    return y


def _prepared(x: Tensor, zero_point: Tensor, padding: Sequence[int]) -> Tensor:
    """x as int8, padded by the zero point, its channels last in memory."""
    launched = kernels(_KERNELS)
    batch, groups, summed, height, width = x.shape
    tall, wide = height + 2 * padding[0], width + 2 * padding[1]
    y = torch.empty((batch, tall, wide, groups, summed), dtype=torch.int8, device=x.device)
    pixels, channels = batch * tall * wide, groups * summed
    flat = x.flatten(1, 2)
    across = min(1 << (channels - 1).bit_length(), 128)
    down = 4096 // across
    launched.prepare[(-(-pixels // down), -(-channels // across))](
        flat,
        y,
        zero_point,
        pixels,
        channels,
        height,
        width,
        tall,
        wide,
        *flat.stride(),
        *padding,
        UNSIGNED=x.dtype is torch.uint8,
        PIXELS=down,
        CHANNELS=across,
        num_warps=8,
    )
    return y.permute(0, 3, 4, 1, 2)


def _shape(
    x: Tensor,
    w: Tensor,
    size: list[int],
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scattered: bool,
    zero_point: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return _result(x, w, size, layout, scale)


convolve_int8 = register(
    "qtrain::convolve_int8(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_point, Tensor? scale,"
    " Tensor? bias) -> Tensor",
    _convolve,
    _shape,
    "CPU",
    "CUDA",
)
