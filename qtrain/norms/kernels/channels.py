"""The passes of `Channels`, compiled, for contiguous and channels-last CPU tensors of up to 32
bits.

Sums are taken in fp32 over at most some hundred elements and in fp64 over those, whatever the
number of threads.  A pass whose kernel cannot be had is torch's.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, bf16, fp16, kernels, round_to
from quantizers.devices.numbers import divided
from quantizers.kernels.plan import constants
from quantizers.kernels.serving import SOURCES, TARGETS

from ..passes import Affine, Channels, Codes, Extra, Slope, Sums, centered_rows, flat_index
from ..samples import Cut, Extremes, Sample
from .memory import Layout, added, by_plane, is_dense, layout_of, made, run, statistics

_TARGETS: dict[tuple[torch.dtype, FloatFormat | None], int] = {
    (torch.float32, None): 0,
    (torch.float16, None): 1,
    (torch.float16, fp16): 1,
    (torch.bfloat16, None): 2,
    (torch.bfloat16, bf16): 2,
    (torch.float32, fp16): 3,
    (torch.float32, bf16): 4,
}
#: formats to which the kernels round an output before its ReLU
ROUNDINGS: dict[FloatFormat | None, int] = {None: 0, fp16: 1, bf16: 2}


def channels(
    x: Tensor,
    activation: FloatFormat | None = None,
    relu: bool = False,
    grad: Tensor | None = None,
) -> CompiledChannels | None:
    """x's, for an output rounded to `activation`, then to 0 where negative with relu, and its
    gradient; None where x is neither contiguous nor channels-last, has too many elements to
    number, or the kernels do not read it or round so."""
    if (
        x.dtype not in SOURCES
        or not 0 < x.numel() < 2**31
        or (relu and activation not in ROUNDINGS)
        or not (kernels.serves(x) if grad is None else kernels.serves(x, grad))
    ):
        return None
    layout = layout_of(x)
    if layout is None:
        return None
    kernel = made("normalize", SOURCES[x.dtype], 0, False, layout.planes, False, 0)
    return None if kernel is None else CompiledChannels(x, layout)


class CompiledChannels(Channels):
    """Channels of x, whose memory is read."""

    fused = True

    def __init__(self, x: Tensor, layout: Layout) -> None:
        self.x, self.layout, self.source = x, layout, SOURCES[x.dtype]

    def sample(self, mean: Tensor) -> CompiledSample:
        return CompiledSample(self.x, self.layout, mean)

    def affine(self, of: Affine, dtype: torch.dtype) -> Tensor:
        target = _TARGETS.get((dtype, of.activation))
        if target is None:
            y = self.affine(of._replace(activation=None, relu=False), torch.float32)
            y = y if of.activation is None else round_to(y, of.activation)
            return (y.relu_() if of.relu else y).to(dtype)
        kernel = made("normalize", self.source, target, of.relu, self.layout.planes, False, 0)
        if kernel is None:
            return super().affine(of, dtype)
        y = torch.empty_like(self.x, dtype=dtype)
        run(kernel, self.x.numel(), *self.layout[1:], self.x, y, *of[:3])
        return y

    def codes(self, of: Affine, format: IntFormat) -> Codes | None:
        kernel = made(
            "normalize", self.source, TARGETS[format.dtype], of.relu, self.layout.planes, True,
            ROUNDINGS[of.activation],
        )  # fmt: skip

        def codes(scale: Tensor, zero_point: Tensor | None) -> Tensor:
            elements = torch.empty_like(self.x, dtype=format.dtype)
            zero = 0 if zero_point is None else zero_point
            bounds = ctypes.addressof(constants(format))
            run(
                kernel, self.x.numel(), *self.layout[1:], self.x, elements, *of[:3], scale, zero,
                bounds,
            )  # fmt: skip
            return elements

        return None if kernel is None else codes

    def aligned(self, grad: Tensor) -> Tensor:
        """The gradient in x's layout and a dtype that the kernels read."""
        grad = grad if grad.dtype in SOURCES else grad.float()
        if is_dense(grad, self.layout.planes):
            return grad
        return torch.empty_like(self.x, dtype=grad.dtype).copy_(grad)

    def sums(self, grad: Tensor, of: Affine, extra: Extra) -> Sums:
        count = self.x.numel() // self.layout.channels
        kind = {None: 4, "squares": 5, "signs": 6}[extra]
        found = statistics(
            kind, self.x, self.layout, Cut(0, 1, count), 2 if extra is None else 3, *of[:3], grad,
            of.relu, ROUNDINGS[of.activation] if of.relu else 0,
        )  # fmt: skip
        if found is None:
            return super().sums(grad, of, extra)
        plain, product, *more = [added(part) for part in found[0]]
        return Sums(plain, product, more[0] if more else None)

    def grad_input(
        self, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
    ) -> Tensor:
        kernel = made(
            "backward_input", self.source, SOURCES[grad.dtype], _TARGETS[dtype, None],
            slope is not None, slope is not None and slope.of == "sign", of.relu,
            ROUNDINGS[of.activation] if of.relu else 0, self.layout.planes,
        )  # fmt: skip
        if kernel is None:
            return super().grad_input(grad, of, offset, slope, dtype)
        result = torch.empty_like(self.x, dtype=dtype)
        factor = offset if slope is None else slope.factor
        run(kernel, self.x.numel(), *self.layout[1:], self.x, grad, result, *of[:3], factor, offset)
        return result

    def add_at(self, grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """In place."""
        flat = by_plane(grad)
        flat.index_put_(flat_index(index, flat.shape[2]), value, accumulate=True)
        return grad


class CompiledSample(Sample):
    """One read from x's own memory."""

    def __init__(self, x: Tensor, layout: Layout, mean: Tensor) -> None:
        self.x, self.layout, self.mean = x, layout, mean
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean
        self.count = x.numel() // layout.channels

    def rows(self) -> Tensor:
        return centered_rows(self.x, self.mean)

    def _mean(self, kind: int) -> Tensor | None:
        found = statistics(kind, self.x, self.layout, Cut(0, 1, self.count), 1, self.mean)
        return None if found is None else divided(added(found[0][0]), self.count)

    def ones(self) -> Tensor:
        return torch.ones_like(self.mean)

    def mean_square(self) -> Tensor:
        mean = self._mean(0)
        return super().mean_square() if mean is None else mean

    def mean_magnitude(self) -> Tensor:
        mean = self._mean(1)
        return super().mean_magnitude() if mean is None else mean

    def _first(self, values: Tensor, at: Tensor, each: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Of each chunk's blocks the best value (C, chunks) and the least of its indices."""
        values, at = (t.view(-1, each, *t.shape[1:]) for t in (values, at.view(torch.int32)))
        best = values.amax((1, 3)) if largest else values.amin((1, 3))
        index = torch.where(values == best[:, None, :, None], at, 2**31 - 1).amin((1, 3))
        return best.t(), index.t().long()

    def largest(self, k: int) -> Tensor:
        found = None
        if k == 1:
            found = statistics(2, self.x, self.layout, Cut(0, 1, self.count), 2, self.mean)
        if found is None:
            return super().largest(k)
        (values, at), each = found
        return self._first(values, at, each, largest=True)[1]

    def take(self, index: Tensor) -> Tensor:
        x = by_plane(self.x)
        chosen = x[flat_index(index, x.shape[2])].float()
        return chosen - self.mean.unsqueeze(1) + self.taint.unsqueeze(1)

    def extremes(self, cut: Cut) -> Extremes:
        found = statistics(3, self.x, self.layout, cut, 4, self.mean)
        if found is None:
            return super().extremes(cut)
        (high, high_at, low, low_at), each = found
        top, top_at = self._first(high, high_at, each, largest=True)
        bottom, bottom_at = self._first(low, low_at, each, largest=False)
        taint = self.taint.unsqueeze(1)
        return Extremes(top + taint, bottom + taint, top_at, bottom_at)
