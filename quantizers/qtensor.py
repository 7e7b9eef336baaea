"""QTensor: what a quantizer made of a tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .by_device import ByDevice
from .formats import FloatFormat, Format
from .granularity import expand
from .kernels.unshift import unshifted as kernel
from .memory import serves
from .numbers import constant

#: times the largest element of any format with a scale (below 2^49) fp32 holds it
_FAR_FROM_INFINITY = 2.0**64


def _unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor:
    """elements - zero_point (broadcastable) as exact floating-point numbers."""
    values = elements if elements.is_floating_point() else elements.float()
    if zero_point is None:
        return values
    return values - zero_point if values is elements else values.sub_(zero_point)


unshifted = ByDevice(_unshifted, cpu=kernel)


class QTensor(NamedTuple):
    """A quantized tensor: value = (elements - zero_point) * scale.

    elements     unscaled numbers on the format's grid, x's shape: the smallest integer dtype for
                 an IntFormat; fp32 for a FloatFormat; x itself where nothing was quantized
    scale        fp32, one entry per block, or None for 1
    zero_point   int32, scale's shape, or None for 0
    format       the elements' format, or None where nothing was quantized
    block        block size along each axis of elements
    """

    elements: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    format: Format | None = None
    block: tuple[int, ...] = ()

    @property
    def values_dtype(self) -> torch.dtype:
        """The dtype of `dequantize()`."""
        return self.elements.dtype if self.elements.is_floating_point() else torch.float32

    def spread(self, compact: Tensor) -> Tensor:
        """A per-block tensor, broadcastable to the elements."""
        shape = tuple(self.elements.shape)
        return expand(compact, shape, self.block)

    def unshifted(self) -> Tensor:
        """elements - zero_point as exact floating-point numbers, the elements' shape."""
        if self.zero_point is None and self.elements.is_floating_point():
            return self.elements
        zero_point = self.zero_point
        if zero_point is not None and zero_point.numel() > 1:
            zero_point = self.spread(zero_point)
        return unshifted(self.elements, zero_point)

    def dequantize(self) -> Tensor:
        """The real values: one rounding, of the product with the scale; fp32's largest where a
        finite one passes that.  fp32, or x's dtype where x was not quantized; fp64 where x was fp64
        and its elements are floating point."""
        values = self.unshifted()
        if self.scale is None:
            return values
        scale = self.spread(self.scale)
        values = values * scale
        infinite = isinstance(self.format, FloatFormat) and self.format.overflow == "inf"
        if values.dtype != torch.float32 or self.format is None or infinite:
            return values
        if serves(scale) and bool((self.scale < _FAR_FROM_INFINITY).all()):
            return values  # all but always, and without a pass of its own
        most = constant(torch.finfo(torch.float32).max, values)
        most = torch.where(torch.isfinite(scale), most, float("inf"))
        return values.clamp_(-most, most)
