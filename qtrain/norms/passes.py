"""The passes over the data that a batch-norm is made of, by torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, round_to

from .samples import Sample

#: what `sums` may be asked for besides: of centered^2, or of sign(centered)
Extra = Literal["squares", "signs"] | None
#: (scale, zero point) of one entry -> elements of an integer format
Codes = Callable[[Tensor, Tensor | None], Tensor]


class Affine(NamedTuple):
    """y = (x - mean) * scale + shift, rounded to the activation format, and, with relu,
    max(y, 0)."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    activation: FloatFormat | None = None
    relu: bool = False


class Sums(NamedTuple):
    """Over each channel: of g, g * centered, and what else was asked for."""

    grad: Tensor
    product: Tensor
    extra: Tensor | None


class Slope(NamedTuple):
    """What is added to the gradient: factor * centered, or factor * sign(centered)."""

    factor: Tensor
    of: Literal["centered", "sign"]


def wide(x: Tensor) -> Tensor:
    """x in the dtype of the statistics: fp64 for fp64, fp32 for the others."""
    return x if x.dtype == torch.float64 else x.float()


def lift(per_channel: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), in the dtype of `like` (N, C, *S)."""
    return per_channel.to(like.dtype).reshape(1, -1, *[1] * (like.dim() - 2))


def others(x: Tensor) -> list[int]:
    """The axes that a channel's elements lie along."""
    return [axis for axis in range(x.dim()) if axis != 1]


def flat_index(index: Tensor, space: int) -> tuple[Tensor, ...]:
    """Where in (N, C, S) the elements index (C, J) of each channel's N * S lie."""
    channel = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return index // space, channel, index % space


def centered_rows(x: Tensor, mean: Tensor) -> Tensor:
    """The channels' elements (C, M), less their means."""
    return wide(x).transpose(0, 1).flatten(1) - mean.unsqueeze(1)


def _output(centered: Tensor, of: Affine) -> Tensor:
    y = centered * lift(of.scale, centered) + lift(of.shift, centered)
    y = y if of.activation is None else round_to(y, of.activation)
    return y.relu() if of.relu else y


class Channels:
    """x (N, C, *S), and its passes; mean, scale, shift and every result per channel: (C,), fp32
    (fp64 for fp64 x).

    fused   whether a pass takes no more memory than its result
    """

    fused: ClassVar[bool] = False

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def _centered(self, of: Affine) -> Tensor:
        x = wide(self.x)
        return x - lift(of.mean, x)

    def sample(self, mean: Tensor) -> Sample:
        """The channels' elements less their means."""
        return Sample(centered_rows(self.x, mean))

    def affine(self, of: Affine, dtype: torch.dtype) -> Tensor:
        """y in `dtype`."""
        return _output(self._centered(of), of).to(dtype)

    def codes(self, of: Affine, format: IntFormat) -> Codes | None:
        """What makes elements of y, round(y / scale) + zero_point, clamped to the format, in x's
        layout, without y; None where nothing does."""
        return None

    def images(self, of: Affine, ends: Tensor | None) -> Tensor:
        """y (2, C), fp32, of each channel's smallest and largest x, either first: y is a monotone
        function of x in every channel, rounding included.

        ends: indices (C, J) of elements, these two among them, where known.
        """
        rows = self.x.reshape(self.x.shape[0], self.x.shape[1], -1)
        if ends is None:
            known = torch.stack([rows.amin((0, 2)), rows.amax((0, 2))])
        else:
            chosen = rows[flat_index(ends, rows.shape[2])]
            known = torch.stack([chosen.amin(1), chosen.amax(1)])
        return Channels(known).affine(of, torch.float32)

    def aligned(self, grad: Tensor) -> Tensor:
        """The gradient as the following take it."""
        return grad

    def _masked(self, grad: Tensor, centered: Tensor, of: Affine) -> Tensor:
        """The gradient before the ReLU."""
        grad = grad.to(centered.dtype)
        if not of.relu:
            return grad
        return torch.where(_output(centered, of) <= 0, 0.0, grad)

    def sums(self, grad: Tensor, of: Affine, extra: Extra) -> Sums:
        """The sums that the gradient needs; g: grad, where the ReLU was on."""
        centered = self._centered(of)
        g = self._masked(grad, centered, of)
        axes = others(self.x)
        more = None
        if extra is not None:
            more = (centered.square() if extra == "squares" else centered.sign()).sum(axes)
        return Sums(g.sum(axes), (g * centered).sum(axes), more)

    def grad_input(
        self, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
    ) -> Tensor:
        """g * scale + offset + slope, in `dtype`."""
        centered = self._centered(of)
        g = self._masked(grad, centered, of) * lift(of.scale, centered) + lift(offset, centered)
        if slope is not None:
            along = centered if slope.of == "centered" else centered.sign()
            g = g + lift(slope.factor, centered) * along
        return g.to(dtype)

    def add_at(self, grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """grad, a result of `grad_input`, with value (C, J) added at index (C, J) into each
        channel's N * S."""
        flat = grad.reshape(grad.shape[0], grad.shape[1], -1)
        where = flat_index(index, flat.shape[2])
        return flat.index_put(where, value, accumulate=True).reshape(grad.shape)
