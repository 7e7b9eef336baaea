"""What follows an exact integer sum: one conversion, the scale, the bias."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers import kernels
from quantizers.by_device import ByDevice
from quantizers.kernels import team

from ..operations import Operation
from .scales import times


class Epilogue(NamedTuple):
    """fl32(fl32(sum) * scale) + bias, each rounded once.

    scales  of the operands, fp32, each broadcastable to the sums; none for 1
    bias    (out channels), or None
    """

    scales: tuple[Tensor, ...] = ()
    bias: Tensor | None = None

    @property
    def scale(self) -> Tensor | None:
        """The product of the scales: fp32, or fp64 with an axis at least and 24 significant bits
        where fp32 may not hold it (`scales.times`); None for 1."""
        if len(self.scales) < 2:
            return self.scales[0] if self.scales else None
        return times(*self.scales)

    def __call__(self, operation: Operation, sums: Tensor, shift: Tensor | None = None) -> Tensor:
        """sums: exact integers in any dtype, which the caller gives away; shift: int32, what is
        first to be taken from int32 sums, broadcastable to them, modulo 2^32 -> fp32, their shape.
        """
        return _finished(sums, self, operation, shift)

    def applied_(self, operation: Operation, output: Tensor) -> Tensor:
        """output * scale + bias, in place."""
        scale = self.scale
        if scale is not None:
            output = output.mul_(scale)
        if self.bias is not None:
            output = output.add_(operation.along_channels(self.bias.to(output.dtype)))
        return output

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
    return after.applied_(operation, output)


def _compiled(
    sums: Tensor, after: Epilogue, operation: Operation, shift: Tensor | None
) -> Tensor | None:
    """The whole in one pass, in the memory of the sums; None where no kernel serves them."""
    axis = operation.channel_axis(sums.dim())
    if (
        sums.dtype != torch.int32
        or not kernels.serves(sums)
        or not sums.movedim(axis, -1).is_contiguous()
    ):
        return None
    channels = sums.shape[axis]
    scale = after.scale_of(operation, channels)
    bias = None if after.bias is None else after.bias.float().contiguous()
    kernel = kernels.made("qtrain.products.engines.compiled_epilogue", "finish")
    if sums.numel() == 0 or scale is None or scale.dtype != torch.float32 or kernel is None:
        return None
    scale = scale.contiguous()
    zeros, minus_zeros = _neutral(channels)
    rows, matrices = sums.numel() // channels, 1
    if shift is not None:
        shift = shift.contiguous()
        matrices = shift.numel() // channels
    words = team.packed(
        rows, channels, sums.data_ptr(), rows // matrices,
        ctypes.addressof(zeros) if shift is None else shift.data_ptr(), scale.data_ptr(),
        ctypes.addressof(minus_zeros) if bias is None else bias.data_ptr(),
    )  # fmt: skip
    team.run(kernel.address, words, sums.numel())
    return sums.view(torch.float32)


_finished = ByDevice(_finish, cpu=_compiled)


@lru_cache(maxsize=256)
def _neutral(channels: int) -> tuple[Any, Any]:
    """A shift and a bias that change nothing: x + -0.0 is x for every x, -0.0 too."""
    return (ctypes.c_int32 * channels)(), (ctypes.c_float * channels)(*[-0.0] * channels)
