"""What follows an exact integer sum: one conversion, the scale, the bias."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers import kernels
from quantizers.devices.by_device import ByDevice
from quantizers.kernels import team
from quantizers.kernels.layout import contiguous

from ..operations import Operation
from .scales import times


class Epilogue(NamedTuple):
    """fl32(fl32(sum) * scale) + bias, each rounded once.

    scales  of the operands, fp32, each one number or broadcastable to the sums; none for 1
    bias    (out channels), or None
    """

    scales: tuple[Tensor, ...] = ()
    bias: Tensor | None = None

    @property
    def scale(self) -> Tensor | None:
        """The product of the scales: fp32, or fp64 with an axis at least and 24 significant bits
        where fp32 may not hold it (`scales.times`); None for 1."""
        found = [scale.reshape(()) if scale.numel() == 1 else scale for scale in self.scales]
        if len(found) < 2:
            return found[0] if found else None
        return times(*found)

    def __call__(self, operation: Operation, sums: Tensor, shift: Tensor | None = None) -> Tensor:
        """sums: exact integers in any dtype, which the caller gives away; shift: int32, what is
        first to be taken from int32 sums, broadcastable to them, modulo 2^32 -> fp32, their shape.
        """
        return _finished(sums, self, operation, shift)

    def applied_(self, operation: Operation, output: Tensor) -> Tensor:
        """output * scale + bias, in place."""
        return _applied(output, self, operation)

    def scale_of(self, operation: Operation, channels: int) -> Tensor | None:
        """The scale of each channel, (channels), a view where it can be, fp32 on the CPU where
        there is none; None where it varies along anything else."""
        scale = self.scale
        if scale is None:
            return torch.ones(channels, dtype=torch.float32, device="cpu")
        if scale.numel() == 1:
            return scale.reshape(()).expand(channels)
        axis = operation.channel_axis(scale.dim())
        if scale.dim() > axis and scale.numel() == scale.shape[axis] == channels:
            return scale.reshape(-1)
        if operation.weight_is_data and scale.dim() == 3 and scale.shape[1] == 1 < scale.shape[2]:
            # of a batch of matrices, each with channels of its own
            return scale.reshape(-1) if scale.numel() == channels else None
        return None

    def scales_of(self, operation: Operation, channels: int) -> list[Tensor] | None:
        """The scales of each channel, as `scale_of`; None where one varies along anything else."""
        found = [Epilogue((scale,)).scale_of(operation, channels) for scale in self.scales]
        known = [scale for scale in found if scale is not None]
        return known if len(known) == len(found) else None


def _finish(sums: Tensor, after: Epilogue, operation: Operation, shift: Tensor | None) -> Tensor:
    if sums.dtype == torch.int32 and sums.is_cpu and not torch.compiler.is_compiling():
        sums = sums if shift is None else sums.sub_(shift)
        output = sums.view(torch.float32).copy_(sums)  # element by element, where they lie
    else:
        output = (sums if shift is None else sums - shift).to(torch.float32)
    return _applied(output, after, operation)


def _apply(output: Tensor, after: Epilogue, operation: Operation) -> Tensor:
    scale = after.scale
    if scale is not None:
        output = output.mul_(scale)
    if after.bias is not None:
        output = output.add_(operation.along_channels(after.bias.to(output.dtype)))
    return output


def _compiled(
    sums: Tensor, after: Epilogue, operation: Operation, shift: Tensor | None = None
) -> Tensor | None:
    """The whole in one pass, in the memory of the sums, int32, or fp32 without a shift; None where
    no kernel serves them."""
    integer = sums.dtype is torch.int32
    axis = operation.channel_axis(sums.dim())
    found = _rows(sums.shape, sums.stride(), axis)
    if (not integer and sums.dtype is not torch.float32) or found is None:
        return None
    rows, channels, inner = found
    if not kernels.serves(sums, *after.scales) or (shift is not None and inner > 1):
        return None
    kernel = kernels.made("qtrain.products.engines.compiled_epilogue", "finish", integer)
    if kernel is None:
        return None
    places, steps = [0, 0], [0, 0]
    for i, scale in enumerate(after.scales):
        if scale.dtype is not torch.float32:
            return None
        places[i] = scale.data_ptr()
        if scale.numel() > 1:
            along = operation.channel_axis(scale.dim())
            if scale.dim() <= along or not scale.numel() == scale.shape[along] == channels:
                return None
            steps[i] = scale.stride(along)
    bias = None if after.bias is None else after.bias.float().contiguous()
    zeros, minus_zeros = map(ctypes.addressof, _neutral(channels))
    each = rows
    if shift is not None:
        shift = shift.contiguous()
        each = rows // (shift.numel() // channels)
    words = team.packed(
        rows, channels, inner, each, *steps, sums.data_ptr(),
        zeros if shift is None else shift.data_ptr(), *places,
        minus_zeros if bias is None else bias.data_ptr(),
    )  # fmt: skip
    team.run(kernel.address, words + bytes(4 * channels), rows * channels * inner)
    return sums.view(torch.float32) if integer else sums


_finished = ByDevice(_finish, cpu=_compiled)
_applied = ByDevice(_apply, cpu=_compiled)


@lru_cache(maxsize=4096)
def _rows(
    shape: tuple[int, ...], strides: tuple[int, ...], axis: int
) -> tuple[int, int, int] | None:
    """Rows of channels of so many adjacent elements each, as they lie in memory; None where they
    do not, or there are none."""
    others = [place for place in range(len(shape)) if place != axis]
    for order, inner in (((*others, axis), 1), (range(len(shape)), math.prod(shape[axis + 1 :]))):
        steps = [strides[place] for place in order]
        lengths = tuple([shape[place] for place in order])
        plain = zip(lengths, steps, contiguous(lengths), strict=True)
        if all(n == 1 or step == own for n, step, own in plain) and 0 not in shape:
            channels = shape[axis]
            return math.prod(shape) // (channels * inner), channels, inner
    return None


@lru_cache(maxsize=256)
def _neutral(channels: int) -> tuple[Any, Any]:
    """A shift and a bias that change nothing: x + -0.0 is x for every x, -0.0 too."""
    return (ctypes.c_int32 * channels)(), (ctypes.c_float * channels)(*[-0.0] * channels)
