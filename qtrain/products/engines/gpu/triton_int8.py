"""Exact products of int8 operands on the tensor cores of a GPU."""

from __future__ import annotations


import torch
from torch import Tensor

from quantizers.kernels.gpu.launch import INTERPRETED, OPTIONS, there

from ...convolution import Convolution
from ...operations import BatchedMatmul, Kind, Operation
from ..admission import Tried
from ..engine import Work
from ..epilogue import Epilogue
from ..geometry import Window, dense, reduced, restored


class TritonInt8(Tried):
    """int8 by int8 or uint8, summed in int32, scale and bias in the same kernel.

    Forward and grad_input of matrices and of convolutions of one or two axes; batches of matrices.
    """

    name = "triton_int8"
    device_types: tuple[str, ...] = ("cpu",) if INTERPRETED else ("cuda",)
    takes_zero_point = True

    def supports(self, operation: Operation, kind: Kind, work: Work) -> bool:
        if kind == "grad_weight" and not isinstance(operation, BatchedMatmul):
            return False
        if isinstance(operation, Convolution) and len(operation.stride) > 2:
            return False
        eight = work.a.within(-128, 127) or work.a.within(0, 255)
        return eight and work.b.within(-128, 127) and work.bound < 2**31

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
        unsigned = not work.a.within(-128, 127)
        a, b = a.to(torch.uint8 if unsigned else torch.int8), b.to(torch.int8)
        if isinstance(operation, BatchedMatmul):
            x, w = _matrices(kind, a, b)
            result = x.new_empty((x.shape[1], x.shape[4], w.shape[1]), dtype=torch.int32)
            y = result.permute(0, 2, 1)[None, :, :, None]
            window, scattered = Window((1, 1), (0, 0), (1, 1)), False
        else:
            shape = reduced(operation, kind, a, b, like)
            window, w, scattered = shape.window, shape.w, shape.scattered is not None
            x, groups = shape.x, w.shape[0]
            size = shape.scattered or window.gathered(x.shape[2:], w.shape[3:])
            result = x.new_empty((x.shape[0], groups * w.shape[1], *size), dtype=torch.int32)
            result = dense(result, shape.channels_last)
            x, y = x.unflatten(1, (groups, -1)), result.unflatten(1, (groups, -1))
            if x.dim() == 4:  # a single axis is the second of two
                x, w, y = x.unsqueeze(3), w.unsqueeze(3), y.unsqueeze(3)
                fields = (window.stride, window.padding, window.dilation)
                one = zip((1, 0, 1), fields, strict=True)
                window = Window(*((first, *rest) for first, rest in one))
        finished = _finished(operation, x.shape[1] * w.shape[1], epilogue)
        if finished is not None:
            y, result = y.view(torch.float32), result.view(torch.float32)
        if unsigned and zero_point is None:
            zero_point = torch.zeros((), dtype=torch.int32, device=x.device)
        _launch(x, w, y, window, scattered, zero_point, finished)
        if not isinstance(operation, BatchedMatmul):
            result = restored(operation, kind, result, a, like)
        if epilogue is None or finished is not None:
            return result
        return epilogue(operation, result)


def _matrices(kind: Kind, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Batches of matrices as x (1, G, C, 1, W) and w (G, P, C, 1, 1) of a convolution."""
    if kind == "grad_weight":
        a = a.transpose(1, 2)
    if kind != "forward":
        b = b.transpose(1, 2)
    return a.transpose(1, 2)[None, :, :, None], b[..., None, None]


def _finished(
    operation: Operation, channels: int, epilogue: Epilogue | None
) -> tuple[Tensor, Tensor | None] | None:
    """Scale, one or one a channel, and bias of an epilogue that the kernel has; else None."""
    if epilogue is None or epilogue.scale is None:
        return None
    scale, bias = epilogue.scale, epilogue.bias
    axis = operation.channel_axis(scale.dim())
    if scale.numel() > 1 and not scale.numel() == scale.shape[axis] == channels:
        return None
    return scale.reshape(-1), None if bias is None else bias.float().contiguous()


def _tiles(rows: int, produced: int, summed: int) -> tuple[int, int, int, int, int]:
    """Rows, columns and depth of a tile, warps, stages."""
    deep = 128 if summed >= 256 else 64 if summed > 32 else 32
    across = 128 if produced >= 128 and rows >= 8192 else 64 if produced > 32 else 32
    tall = 128 if rows >= 4096 else 64
    return tall, across, deep, 8 if tall * across >= 128 * 128 else 4, 3


def _launch(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    window: Window,
    scattered: bool,
    zero_point: Tensor | None,
    finished: tuple[Tensor, Tensor | None] | None,
) -> None:
    """x, w, y, all else: see convolve."""
    from .convolve import convolve

    if x.stride(2) != 1 and x.shape[2] > 1:
        x = x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    if w.stride(2) != 1 and w.shape[2] > 1:
        w = w.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    batch, groups, produced, out_height, out_width = y.shape
    summed, (height, width) = x.shape[2], x.shape[3:]
    rows, taps = batch * out_height * out_width, w.shape[3] * w.shape[4]
    if rows * produced * groups == 0:
        return
    sums = scale = bias = w
    if zero_point is not None:
        sums = w.sum((2, 3, 4), dtype=torch.int32)
    if finished is not None:
        scale = finished[0]
        bias = w if finished[1] is None else finished[1]
    tall, across, deep, warps, stages = _tiles(rows, produced, summed)
    blocks = -(-summed // deep)
    grid = (-(-rows // tall) * -(-produced // across), groups)
    with there(x):
        convolve[grid](
            x,
            w,
            y,
            scale,
            bias,
            w if zero_point is None else zero_point,
            sums,
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
            0 if scale.numel() == 1 else 1,
            *window.stride,
            *window.padding,
            *window.dilation,
            w.shape[4],
            blocks,
            STEPS=taps * blocks,
            SCATTER=scattered,
            UNSIGNED=x.dtype is torch.uint8,
            AFFINE=zero_point is not None,
            SCALED=finished is not None,
            BIASED=finished is not None and finished[1] is not None,
            ROWS=tall,
            ACROSS=across,
            DEEP=deep,
            BAND=8,
            num_warps=warps,
            num_stages=stages,
            **OPTIONS,
        )
