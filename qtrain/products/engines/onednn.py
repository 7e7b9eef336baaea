"""Exact integer products on the int8 units of a CPU, by torch's own oneDNN convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantizers.devices.by_device import register

from ..convolution import LAST, Convolution
from .engine import Engine
from .epilogue import Epilogue
from .geometry import Reduced, Window, cropped, dense, reduced, scatter
from .scales import narrowed
from .task import Task


class OneDnnInt8(Engine):
    """uint8 times int8, summed in int32; scale per output channel and bias are fused.

    forward and grad_input of convolutions; grad_weight is not a convolution with a small kernel.
    Small products it leaves to others: packing the weight takes longer than they do.
    """

    device_types: tuple[str, ...] = ("cpu",)
    takes_zero_point = True

    def __init__(self, smallest: int = 2**23, *, shifted: int = 2**31) -> None:
        """smallest: multiplications from which it is faster than fp32 units (measured on two
        cores with AVX512-VNNI).

        shifted: what the sum of codes with a zero point must stay below, before the zero point is
        taken off.  On AMX units oneDNN takes it off in fp32, which holds sums below 2^24.
        """
        self.smallest, self.shifted = smallest, shifted
        self.name = "onednn_int8" if shifted == 2**31 else "onednn_int8_fp32_zero_point"

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if kind == "grad_weight" or not isinstance(operation, Convolution):
            return False
        if task.multiplications is not None and task.multiplications < self.smallest:
            return False
        if task.sums and task.bound > 2**24:  # the result is fp32
            return False
        eight = task.a.within(0, 255) or task.a.within(-128, 127)
        # the codes enter as 0 .. 255, so the running sum may pass task.bound
        raw = task.terms * 255 * task.b.magnitude
        largest = self.shifted if task.zero_point or task.a.low < 0 else 2**31
        return eight and task.b.within(-128, 127) and raw < largest and task.bound < 2**31

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
        assert isinstance(operation, Convolution)
        shape = reduced(operation, kind, a, b, like)
        x, offset = shape.x, 0
        if task.a.low < 0:
            x, offset = x.to(torch.int8).view(torch.uint8) ^ 128, 128
        else:
            x = x.to(torch.uint8)
        if zero_point is None:
            zero_point = torch.full((), offset, dtype=torch.int32, device="cpu")
        else:
            zero_point = zero_point.reshape(()).to(torch.int32) + offset
        channels = shape.w.shape[0] * shape.w.shape[1]
        after = epilogue or Epilogue()
        scale = after.scale_of(operation, channels)
        fused = scale is not None
        if scale is None:
            scale = Epilogue().scale_of(operation, channels)
            assert scale is not None
        scale = scale.contiguous()
        bias = after.bias.float() if fused and after.bias is not None else None
        shape = shape._replace(x=x, w=shape.w.to(torch.int8))
        result: Tensor
        if torch.compiler.is_compiling():  # as one operation of the graph
            how = *shape.window, shape.scattered, shape.channels_last
            result = _whole(x, zero_point, shape.w, scale, bias, *how)
        else:
            result = _convolution(shape, zero_point, scale, bias)
        if kind == "grad_input":
            result = cropped(result, like)
        return result if fused else after.applied_(operation, result)


def _convolution(shape: Reduced, zero_point: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A gather or scatter with its epilogue.

    shape: of uint8 x and int8 w; zero_point: int32 (); scale: as `scales.times` makes it, bias:
    fp32, both (groups * produced) -> fp32 (N, groups * produced, *S').
    """
    x = shape.x
    if scale.dtype == torch.float64:
        held = narrowed(scale)
        if held is None:
            ones = torch.ones_like(scale, dtype=torch.float32)
            over = [1, -1, *[1] * (x.dim() - 2)]
            result = _convolution(shape, zero_point, ones, None).mul_(scale.view(over))
            return result if bias is None else result.add_(bias.view(over))
        scale = held
    one = scale.new_ones(1)  # scales enter the product alone
    zeros = scale.new_zeros(scale.numel(), dtype=torch.int64)
    space = [1] * (x.dim() - 2)

    def nothing(shape: Sequence[int]) -> Tensor:
        result = (scale * 0.0).view(1, -1, *space)
        if bias is not None:
            result = result + bias.view(1, -1, *space)
        return result.expand(shape) if math.prod(shape) else result.new_empty(list(shape))

    def gather(x: Tensor, w: Tensor, window: Window) -> Tensor:
        if not (x.numel() and w.numel()):
            size = window.gathered(x.shape[2:], w.shape[3:])
            return nothing([x.shape[0], scale.numel(), *size])
        groups = w.shape[0]
        # Packed for zero point 0 it serves every one: oneDNN adds what another needs to the packed
        # weight when it is used, in a tenth of the time that packing it in takes.
        # Packed for another shape of input it may lie otherwise, and is then laid out anew.
        packed = torch.ops.onednn.qconv_prepack(
            w.flatten(0, 1), one, 1.0, 0, *window, groups, list(x.shape)
        )
        x = x.contiguous(memory_format=LAST[x.dim()])
        result: Tensor = torch.ops.onednn.qconv_pointwise.tensor(
            x, one, zero_point, packed, scale, zeros, bias, *window, groups, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        return result

    if shape.scattered is None:
        return dense(gather(x, shape.w, shape.window), shape.channels_last)
    return scatter(gather, nothing, shape)


def _operation(
    x: Tensor, zero_point: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    *window, size, last = how
    shape = Reduced(x, w, Window(*map(tuple, window)), size, last)
    return _convolution(shape, zero_point, scale, bias)


def _fake(
    x: Tensor, zero_point: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    *window, size, last = how
    if size is None:
        size = Window(*map(tuple, window)).gathered(x.shape[2:], w.shape[3:])
    empty = scale.new_empty([x.shape[0], scale.shape[0], *size], dtype=torch.float32)
    return dense(empty, last)


_whole = register(
    "qtrain::onednn_int8(Tensor x, Tensor zero_point, Tensor w, Tensor scale, Tensor? bias,"
    " int[] stride, int[] padding, int[] dilation, SymInt[]? scattered, bool channels_last)"
    " -> Tensor",
    _operation, _fake, "CPU",
)  # fmt: skip
