"""The passes of `Channels` as Triton kernels, for contiguous and channels-last tensors of up to 32
bits.

Sums are taken in fp64, their terms in fp32; how they are cut into parts depends on the shape alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, bf16, fp16, round_to
from quantizers.kernels.gpu.device import bound, power_of_two, serves
from quantizers.kernels.serving import SOURCES, imported

from ...passes import Affine, Channels, Codes, Extra, Slope, Sums
from ..channels import ROUNDINGS
from ..memory import Layout, is_dense, layout_of
from .launch import CHANNELS, MOST, PASS, PASSES, STATISTICS, Parts, launched, tiles, whole
from .samples import TritonSample, moments

_STORED = {torch.float32: None, torch.float16: fp16, torch.bfloat16: bf16}

_BLOCK = 1024


def channels(
    x: Tensor,
    activation: FloatFormat | None = None,
    relu: bool = False,
    grad: Tensor | None = None,
) -> TritonChannels | None:
    """See kernels.channels."""
    if (
        x.dtype not in SOURCES
        or not 0 < x.numel() < MOST
        or (relu and activation not in ROUNDINGS)
        or not serves(x, grad)
        or imported(PASSES) is None
    ):
        return None
    layout = layout_of(x)
    return None if layout is None else TritonChannels(x, layout)


def rounding(activation: FloatFormat | None, dtype: torch.dtype) -> int | None:
    """What the kernels round an output to, stored as dtype; None: they do not."""
    stored = _STORED.get(dtype, activation)
    if dtype not in _STORED or (None not in (activation, stored) and activation != stored):
        return None
    return ROUNDINGS.get(activation or stored)


class TritonChannels(Channels):
    """Channels of x, whose memory is read."""

    fused = True

    def __init__(self, x: Tensor, layout: Layout) -> None:
        self.x, self.layout, self.tiles = x, layout, tiles(layout)

    def _of(self, of: Affine) -> tuple[Tensor, ...]:
        return tuple(t.contiguous() for t in of[:3])

    def _elementwise(self, name: str, *words: object, **constants: object) -> None:
        """A kernel for every tile."""
        of = tiles(self.layout, size=PASS)
        launched(PASSES, name, self.x, of.programs, *words, **constants, **of.shape())

    def sample(self, mean: Tensor) -> TritonSample:
        return TritonSample(self.x, self.tiles, mean)

    def affine(self, of: Affine, dtype: torch.dtype) -> Tensor:
        kind = rounding(of.activation, dtype)
        if kind is None:
            y = self.affine(of._replace(activation=None, relu=False), torch.float32)
            y = y if of.activation is None else round_to(y, of.activation)
            return (y.relu_() if of.relu else y).to(dtype)
        y = torch.empty_like(self.x, dtype=dtype)
        self._normalize(y, of, kind)
        return y

    def _normalize(
        self,
        y: Tensor,
        of: Affine,
        kind: int,
        step: Tensor | None = None,
        zero_point: Tensor | None = None,
        format: IntFormat | None = None,
    ) -> None:
        x, made = self.x, self._of(of)
        self._elementwise(
            "normalize", x, y, *made,
            x if step is None else step,
            x if zero_point is None else zero_point,
            self.tiles.elements, self.layout.channels, self.layout.width,
            0.0 if format is None else float(format.low),
            0.0 if format is None else float(format.high),
            RELU=of.relu, ROUNDING=kind, CODES=format is not None, AFFINE=zero_point is not None,
        )  # fmt: skip

    def codes(self, of: Affine, format: IntFormat) -> Codes | None:
        def codes(scale: Tensor, zero_point: Tensor | None) -> Tensor:
            elements = torch.empty_like(self.x, dtype=format.dtype)
            self._normalize(elements, of, ROUNDINGS[of.activation], scale, zero_point, format)
            return elements

        return codes if of.activation in ROUNDINGS and format.bits <= 16 else None

    def images(self, of: Affine, ends: Tensor | None) -> Tensor:
        kind, (mean, scale, shift) = ROUNDINGS.get(of.activation), self._of(of)
        if kind is None:
            return super().images(of, ends)
        result = mean.new_empty((2, self.layout.channels))
        if ends is None:
            low, high, each = self._extremes()
        else:
            low = high = ends
            each = ends.shape[1]
        columns = min(power_of_two(self.layout.channels), 128)
        launched(
            CHANNELS, "images", self.x, -(-self.layout.channels // columns),
            self.x, low, high, mean, scale, shift, result, self.layout.channels, self.layout.width,
            bound(each), GATHERED=ends is not None, RELU=of.relu, ROUNDING=kind,
            PLANES=self.layout.planes, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
        return result

    def _extremes(self) -> tuple[Tensor, Tensor, int]:
        cut = whole(self.tiles)
        _, _, high, low, *_ = moments(self.x, self.tiles, cut, extremes=True)
        return low, high, cut.slots

    def aligned(self, grad: Tensor) -> Tensor:
        """The gradient in x's layout and a dtype that the kernels read."""
        grad = grad if grad.dtype in SOURCES else grad.float()
        if is_dense(grad, self.layout.planes):
            return grad
        return torch.empty_like(self.x, dtype=grad.dtype).copy_(grad)

    def partial_sums(self, grad: Tensor, of: Affine, extra: Extra) -> tuple[Tensor, Parts]:
        """Sums of g, of g * centered, and of what else, of each part: (2 or 3, C, parts), fp64."""
        cut = whole(self.tiles)
        shape = (3 if extra else 2), self.layout.channels, cut.slots
        sums = torch.empty(shape, dtype=torch.float64, device=self.x.device)
        launched(
            STATISTICS, "gradient", self.x, cut.slots * self.tiles.across,
            self.x, grad, *self._of(of), sums[0], sums[1], sums[-1], self.layout.channels,
            self.layout.width, *cut.words,
            RELU=of.relu, ROUNDING=ROUNDINGS[of.activation] if of.relu else 0, EXTRA=extra or "",
            **self.tiles.read(cut),
        )  # fmt: skip
        return sums, cut

    def sums(self, grad: Tensor, of: Affine, extra: Extra) -> Sums:
        plain, product, *more = self.partial_sums(grad, of, extra)[0].sum(2).float()
        return Sums(plain, product, more[0] if more else None)

    def grad_input(
        self, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
    ) -> Tensor:
        return self.grad_at(grad, of, offset, slope, None, None, dtype)

    def grad_at(
        self,
        grad: Tensor,
        of: Affine,
        offset: Tensor,
        slope: Slope | None,
        index: Tensor | None,
        value: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """`grad_input` in fp32, with value (C, J) added at index (C, J), as `add_at` does, of few
        J; in dtype."""
        result = torch.empty_like(self.x, dtype=dtype)
        self._elementwise(
            "backward", self.x, grad, result, *self._of(of),
            offset if slope is None else slope.factor.contiguous(), offset.contiguous(),
            offset if index is None else index, offset if value is None else value,
            self.tiles.elements, self.layout.channels, self.layout.width,
            RELU=of.relu, ROUNDING=ROUNDINGS[of.activation] if of.relu else 0,
            SLOPE="" if slope is None else slope.of,
            CARRIERS=0 if index is None else index.shape[1], TARGET=ROUNDINGS[_STORED[dtype]],
        )  # fmt: skip
        return result

    def add_at(self, grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """In place."""
        count, carriers = index.numel(), index.shape[1]
        launched(
            PASSES, "add_at", grad, -(-count // _BLOCK), grad, index.contiguous(),
            value.contiguous(), count, bound(carriers), self.layout.channels,
            self.layout.width, PLANES=self.layout.planes, BLOCK=_BLOCK,
        )  # fmt: skip
        return grad
