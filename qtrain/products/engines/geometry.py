"""Every product of a layer as one of two convolutions: a gather or a scatter.

    gather    y[n, p, i] = sum over s, k of x[n, s, i * stride - padding + k * dilation] w[p, s, k]
    scatter   its transpose: y[n, p, i] = sum of x[n, s, o] w[p, s, k] over every o, k for which
              o * stride - padding + k * dilation = i

Weights are (groups, produced, summed, *kernel); a matrix product is a gather with a kernel of 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..convolution import LAST, Convolution
from ..operations import Linear
from ..plan import planned
from ..product import Product


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes; one number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def gathered(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """The spatial size of a gather's result."""
        return [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]


class Gather(Protocol):
    def __call__(self, x: Tensor, w: Tensor, window: Window) -> Tensor:
        """x: (N, groups * summed, *S), w: (groups, produced, summed, *kernel)
        -> (N, groups * produced, *gathered)."""


@dataclass(frozen=True)
class Reduced:
    """A forward or grad_input product as a convolution.

    scattered       the spatial size of the result of a scatter; None for a gather
    channels_last   whether the result is to lie so in memory
    """

    x: Tensor
    w: Tensor
    window: Window
    scattered: list[int] | None
    channels_last: bool


def reduced(product: Product, a: Tensor, b: Tensor, like: Tensor) -> Reduced:
    """product: forward or grad_input of Linear or Convolution."""
    operation, kind = product
    if isinstance(operation, Linear):
        w = b if kind == "forward" else b.transpose(1, 2)
        # rows are a spatial axis of one image, whose channels come last
        rows = a.flatten(0, -2)[None, :, None].permute(0, 3, 1, 2)
        return Reduced(rows, w[..., None, None], Window((1, 1), (0, 0), (1, 1)), None, True)
    assert isinstance(operation, Convolution)
    window = Window(operation.stride, operation.padding, operation.dilation)
    last = operation.gives_channels_last(a, b)
    w = b if kind == "forward" else b.transpose(1, 2)
    if (kind == "forward") != operation.transposed:
        return Reduced(a, w, window, None, last)
    if kind == "grad_input":
        return Reduced(a, w, window, list(like.shape[2:]), last)
    size = operation.scattered(a.shape[2:], b.shape[3:])
    return Reduced(a, w, window, size, last)


def restored(product: Product, result: Tensor, a: Tensor, like: Tensor) -> Tensor:
    """The result of a reduced product in the operation's own shape."""
    if isinstance(product.operation, Linear):
        return result.permute(0, 2, 3, 1).reshape(*a.shape[:-1], result.shape[1])
    if product.kind == "grad_input" and result.shape[2:] != like.shape[2:]:
        # output padding beyond the stride: positions of a transposed convolution's grad_output
        # that lie beyond its input
        cut = result
        for axis, size in enumerate(like.shape[2:], 2):
            cut = cut.narrow(axis, 0, size)
        return dense(cut, not result.is_contiguous())
    return result


def resized(product: Product, like: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`like` for operands of other lengths along the axes that the product keeps."""
    operation, kind = product
    if kind == "forward" or not isinstance(operation, Convolution):
        return like
    groups = operation.groups
    if kind == "grad_input":
        return like.new_empty((a.shape[0], groups * b.shape[2], *like.shape[2:]))
    return like.new_empty((groups, a.shape[1] // groups, b.shape[1] // groups, *like.shape[3:]))


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x in one of the two memory layouts."""
    return x.contiguous(memory_format=LAST[x.dim()] if channels_last else torch.contiguous_format)


@dataclass(frozen=True)
class _Phase:
    """Results at start, start + stride, ... along one axis of a scatter: a gather of stride 1.

    count          how many
    first, step    the kernel's positions that meet them; taps: their number
    dilation       of those positions in the input
    low            the input's position that the first result meets with its last tap
    """

    start: int
    count: int
    first: int
    step: int
    taps: int
    dilation: int
    low: int

    @property
    def high(self) -> int:
        """The input's position that the last result meets with its first tap."""
        return self.low + (self.taps - 1) * self.dilation + self.count - 1

    def meets(self, size: int) -> bool:
        """Whether any position of an input of `size` is met."""
        return self.taps > 0 and self.low < size and self.high >= 0


def _phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    common = math.gcd(stride, dilation)
    step, reach = stride // common, dilation // common
    found = []
    for start in range(min(stride, size)):
        # start + padding - k * dilation is a multiple of the stride for every step-th k, or none
        firsts = [k for k in range(step) if (start + padding - k * dilation) % stride == 0]
        first = firsts[0] if firsts else kernel
        taps = max(-(-(kernel - first) // step), 0)
        low = (start + padding - first * dilation) // stride - (taps - 1) * reach
        found.append(_Phase(start, -(-(size - start) // stride), first, step, taps, reach, low))
    return found


class _Step(NamedTuple):
    """One gather of a scatter.

    where   the results that it gives;  window: of it
    reads   (axis, start, length) of the input's positions that it meets, where not all
    taps    the kernel's positions, before they are turned round;  crops: of its result
    """

    where: tuple[Any, ...]
    window: Window
    reads: tuple[tuple[int, int, int], ...]
    taps: tuple[slice, ...]
    crops: tuple[Any, ...]


@planned
def _steps(
    size: tuple[int, ...], kernel: tuple[int, ...], given: tuple[int, ...], window: Window
) -> tuple[list[_Step], bool]:
    """The gathers of a scatter from `given` positions to `size`, and whether they give every
    result."""
    axes = [
        _phases(*axis)
        for axis in zip(size, kernel, window.stride, window.padding, window.dilation, strict=True)
    ]
    met = [
        _step(phases, given, window.stride)
        for phases in itertools.product(*axes)
        if all(p.meets(n) for p, n in zip(phases, given, strict=True))
    ]
    return met, len(met) == math.prod([len(phases) for phases in axes])


def _step(phases: Sequence[_Phase], given: Sequence[int], stride: Sequence[int]) -> _Step:
    padding, reads, crops = [], [], []
    for axis, (p, size) in enumerate(zip(phases, given, strict=True), 2):
        start, end = max(p.low, 0), min(p.high + 1, size)
        left, right = max(-p.low, 0), max(p.high + 1 - size, 0)
        if end - start < size:
            reads.append((axis, start, end - start))
        padding.append(max(left, right))  # a convolution pads both sides alike: crop the excess
        crops.append(slice(max(left, right) - left, max(left, right) - left + p.count))
    where = (slice(p.start, None, s) for p, s in zip(phases, stride, strict=True))
    window = Window((1,) * len(phases), tuple(padding), tuple(p.dilation for p in phases))
    taps = tuple(slice(p.first, None, p.step) for p in phases)
    return _Step((..., *where), window, tuple(reads), taps, (..., *crops))


def scatter(
    gather: Gather, nothing: Callable[[Sequence[int]], Tensor], x: Tensor, reduced: Reduced
) -> Tensor:
    """A scatter as one gather of stride 1 for each phase of the stride: no zero is multiplied.

    nothing: the result of a given shape where no products are summed.
    x: (N, groups * summed, *S) -> (N, groups * produced, *size).
    """
    w, size, last = reduced.w, reduced.scattered, reduced.channels_last
    assert size is not None
    steps, complete = _steps(tuple(size), w.shape[3:], x.shape[2:], reduced.window)
    if complete and len(steps) == 1:
        return dense(_gathered(gather, x, w, steps[0]), last)
    shape = [x.shape[0], w.shape[0] * w.shape[1], *size]
    if complete and math.prod(shape) > 0:
        kind, layout = (
            nothing([0] * len(shape)),
            LAST[len(shape)] if last else torch.contiguous_format,
        )
        result = torch.empty(shape, dtype=kind.dtype, device=kind.device, memory_format=layout)
    else:
        result = dense(nothing(shape), last)
    for step in steps:
        result[step.where] = _gathered(gather, x, w, step)
    return result


def _gathered(gather: Gather, x: Tensor, w: Tensor, step: _Step) -> Tensor:
    for read in step.reads:
        x = x.narrow(*read)
    w = w[(slice(None), slice(None), slice(None), *step.taps)].flip(list(range(3, w.dim())))
    return gather(x, w, step.window)[step.crops]
