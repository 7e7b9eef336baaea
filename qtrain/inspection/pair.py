"""A tensor beside what became of it, in fp64: its figures are computed from these, each once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor, fp32


def in_steps(q: QTensor) -> bool:
    """Whether a tensor was quantized in steps that its format tells: none are told by values in
    fp32, as an offset that is real leaves them."""
    return q.format is not None and not (q.scale is None and q.format == fp32)


class TensorPair:
    """x, and its quantized or otherwise changed self, of the same shape."""

    def __init__(self, x: Tensor, q: Tensor | QTensor) -> None:
        self._x, self._q = x.detach(), q

    @property
    def q(self) -> QTensor:
        """As it was quantized."""
        assert isinstance(self._q, QTensor)
        return self._q

    @cached_property
    def x(self) -> Tensor:
        return self._x.double()

    @cached_property
    def value(self) -> Tensor:
        """What became of x."""
        value = self._q.dequantize() if isinstance(self._q, QTensor) else self._q.detach()
        return value.double()

    @cached_property
    def error(self) -> Tensor:
        return self.value - self.x

    @cached_property
    def scale(self) -> Tensor:
        """Of both levels, broadcastable to x."""
        if self.q.scale is None:
            return torch.ones((), dtype=torch.float64, device=self._x.device)
        scale = self.q.spread(self.q.scale).double()
        return scale if self.q.outer is None else scale * self.q.spread(self.q.outer).double()

    @cached_property
    def step(self) -> Tensor:
        """The distance between the two values of its format that x lies between, broadcastable to
        x; of the quantized value it would be another where x was rounded up to a power of two."""
        fmt = self.q.format
        return self.scale if fmt is None else self.scale * fmt.spacing(self.x / self.scale)

    @cached_property
    def position(self) -> Tensor:
        """x in steps."""
        return self.x / self.step

    @cached_property
    def outside(self) -> Tensor:
        """Where x lies outside the interval that its format and scale can represent."""
        q = self.q
        if q.format is None:
            return torch.zeros_like(self._x, dtype=torch.bool)
        if isinstance(q.format, IntFormat):
            shift = q.spread(q.zero_point) if q.zero_point is not None else 0
            low, high = (q.format.low - shift) * self.scale, (q.format.high - shift) * self.scale
            return (self.x < low - self.scale / 2) | (self.x > high + self.scale / 2)
        reach = self.scale * (1 + 2.0**-20)  # the scale's own rounding
        return (self.x < q.format.low * reach) | (self.x > q.format.high * reach)

    @cached_property
    def saturated(self) -> Tensor:
        """Where an element is the format's largest or smallest; not where that stands for 0, as the
        lowest code does for all a ReLU cut off."""
        q = self.q
        if q.format is None:
            return torch.zeros_like(self._x, dtype=torch.bool)
        ends = (q.elements <= q.format.low) | (q.elements >= q.format.high)
        return ends & (self.value != 0)
