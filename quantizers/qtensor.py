"""QTensor: what a quantizer made of a tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .devices.by_device import ByDevice
from .devices.memory import serves
from .devices.numbers import constant
from .formats import FloatFormat, Format
from .granularity import expand
from .kernels import unshift
from .kernels.gpu import values as gpu

#: times the largest element of any format with a scale (below 2^49) fp32 holds it
_FAR_FROM_INFINITY = 2.0**64


def _unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor:
    """elements - zero_point (broadcastable) as exact floating-point numbers."""
    values = elements if elements.is_floating_point() else elements.float()
    if zero_point is None:
        return values
    return values - zero_point if values is elements else values.sub_(zero_point)


unshifted = ByDevice(_unshifted, cpu=unshift.unshifted, cuda=gpu.unshifted)


def _values(elements: Tensor, scale: Tensor, zero_point: Tensor | None, limited: bool) -> Tensor:
    """(elements - zero_point) * scale, broadcastable, rounded once; limited: fp32's largest where a
    finite one passes that."""
    whole = zero_point is None and elements.is_floating_point()
    found = (elements if whole else unshifted(elements, zero_point)) * scale
    if found.dtype != torch.float32 or not limited:
        return found
    if serves(scale) and bool((scale < _FAR_FROM_INFINITY).all()):
        return found  # all but always, and without a pass of its own
    return _within(found, scale, elements if elements.is_floating_point() else None)


def _within(found: Tensor, *factors: Tensor | None) -> Tensor:
    """Products in fp32, changed in place: its largest where they are infinite and no factor is."""
    most = constant(torch.finfo(torch.float32).max, found)
    for factor in factors:
        if factor is not None:
            most = torch.where(torch.isfinite(factor), most, float("inf"))
    return found.clamp_(-most, most)


values = ByDevice(_values, cuda=gpu.values)


class QTensor(NamedTuple):
    """A quantized tensor: value = (elements - zero_point) * scale * outer.

    elements     unscaled numbers on the format's grid, x's shape: the smallest integer dtype for
                 an IntFormat; fp32 for a FloatFormat, within a layer also its own 16 bits; x itself
                 where nothing was quantized
    scale        fp32, one entry per block, or None for 1
    zero_point   int32, scale's shape, or None for 0
    format       the elements' format, or None where nothing was quantized
    block        block size along each axis of elements; one size along all of them in C order,
                 where they are cut flat (`groups`)
    outer        fp32, the scale of the scales (`Scale.over`) or a constant, broadcastable to the
                 shape of `scale`, or None for 1
    """

    elements: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    format: Format | None = None
    block: tuple[int, ...] = ()
    outer: Tensor | None = None

    @property
    def values_dtype(self) -> torch.dtype:
        """The dtype of `dequantize()`."""
        return self.elements.dtype if self.elements.is_floating_point() else torch.float32

    def spread(self, compact: Tensor) -> Tensor:
        """A per-block tensor, or `outer`, broadcastable to the elements."""
        if compact is self.outer and self.scale is not None:
            compact = compact.expand(self.scale.shape)
        shape = tuple(self.elements.shape)
        if len(self.block) == len(shape):
            return expand(compact, shape, self.block)
        count = self.elements.numel()
        return expand(compact, (count,), self.block).expand(count).view(shape)

    def one_level(self) -> QTensor:
        """The same with fl32(scale * outer) in the place of both."""
        if self.outer is None or self.scale is None:
            return self
        return self._replace(scale=self.scale * self.outer, outer=None)

    def unshifted(self) -> Tensor:
        """elements - zero_point as exact floating-point numbers, the elements' shape."""
        if self.zero_point is None and self.elements.is_floating_point():
            return self.elements
        zero_point = self.zero_point
        if zero_point is not None and zero_point.numel() > 1:
            zero_point = self.spread(zero_point)
        return unshifted(self.elements, zero_point)

    def dequantize(self) -> Tensor:
        """The real values: one rounding, of the product with the scale, and one more of that with
        the outer scale (of e2m1 by e4m3 and the like the first is exact); fp32's largest where a
        finite one passes that.  fp32, or x's dtype where x was not quantized; fp64 where x was fp64
        and its elements are floating point."""
        if self.scale is None:
            return self.unshifted()
        scale = self.spread(self.scale)
        infinite = isinstance(self.format, FloatFormat) and self.format.overflow == "inf"
        limited = self.format is not None and not infinite
        zero_point = None if self.zero_point is None else self.spread(self.zero_point)
        found = values(self.elements, scale, zero_point, limited)
        if self.outer is None:
            return found
        outer = self.spread(self.outer)
        times = found * outer
        return _within(times, found, outer) if limited and times.dtype == torch.float32 else times
