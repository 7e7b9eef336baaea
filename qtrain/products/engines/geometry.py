"""A convolution's forward and grad_input as one of two convolutions: a gather or a scatter.

    gather    y[n, p, i] = sum over s, k of x[n, s, i * stride - padding + k * dilation] w[p, s, k]
    scatter   its transpose: y[n, p, i] = sum of x[n, s, o] w[p, s, k] over every o, k for which
              o * stride - padding + k * dilation = i

Weights are (groups, produced, summed, *kernel).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..convolution import LAST, Convolution
from ..operations import Kind
from ..plan import planned
from ..product import Product


class Window(NamedTuple):
    """How a kernel moves over the spatial axes; one number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def gathered(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """The spatial size of a gather's result."""
        return [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, kernel, *self, strict=True)
        ]


class Gather(Protocol):
    def __call__(self, x: Tensor, w: Tensor, window: Window) -> Tensor:
        """x: (N, groups * summed, *S), w: (groups, produced, summed, *kernel)
        -> (N, groups * produced, *gathered)."""


class Reduced(NamedTuple):
    """A forward or grad_input product as a convolution.

    scattered       the spatial size of the result of a scatter; None for a gather
    channels_last   whether the result is to lie so in memory
    """

    x: Tensor
    w: Tensor
    window: Window
    scattered: list[int] | None
    channels_last: bool


def reduced(operation: Convolution, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Reduced:
    """kind: forward or grad_input."""
    window = Window(operation.stride, operation.padding, operation.dilation)
    last = operation.gives_channels_last(a, b)
    w = b if kind == "forward" else b.transpose(1, 2)
    if (kind == "forward") != operation.transposed:
        return Reduced(a, w, window, None, last)
    if kind == "grad_input":
        return Reduced(a, w, window, list(like.shape[2:]), last)
    return Reduced(a, w, window, operation.scattered(a.shape[2:], b.shape[3:]), last)


def cropped(grad_input: Tensor, like: Tensor) -> Tensor:
    """A reduced grad_input of like's shape: without what output padding beyond the stride adds to
    it, positions of a transposed convolution's grad_output that lie beyond its input."""
    if grad_input.shape[2:] == like.shape[2:]:
        return grad_input
    within: Any = (..., *(slice(size) for size in like.shape[2:]))
    return dense(grad_input[within], not grad_input.is_contiguous())


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


class _Phase(NamedTuple):
    """Results at start, start + stride, ... along one axis of a scatter: a gather of stride 1.

    where               the results;  taps: the kernel's positions that meet them, not turned round
    read, length        the input's positions that they meet
    padding, dilation   of the gather;  crop: of its results
    """

    where: slice
    taps: slice
    read: int
    length: int
    padding: int
    dilation: int
    crop: slice


def _phases(
    size: int, kernel: int, given: int, stride: int, padding: int, dilation: int
) -> list[_Phase | None]:
    """None for a phase that meets no position of the input."""
    common = math.gcd(stride, dilation)
    step, reach = stride // common, dilation // common
    found: list[_Phase | None] = []
    for start in range(min(stride, size)):
        # start + padding - k * dilation is a multiple of the stride for every step-th k, or none
        firsts = [k for k in range(step) if (start + padding - k * dilation) % stride == 0]
        first = firsts[0] if firsts else kernel
        taps, count = max(-(-(kernel - first) // step), 0), -(-(size - start) // stride)
        # the input's positions that the first result meets with its last tap, the last with its
        # first
        low = (start + padding - first * dilation) // stride - (taps - 1) * reach
        high = low + (taps - 1) * reach + count - 1
        if taps == 0 or low >= given or high < 0:
            found.append(None)
            continue
        read, end = max(low, 0), min(high + 1, given)
        # a convolution pads both sides alike: crop the excess
        both = max(-low, high + 1 - given, 0)
        crop = both - max(-low, 0)
        found.append(
            _Phase(
                slice(start, None, stride), slice(first, None, step), read, end - read, both, reach,
                slice(crop, crop + count),
            )
        )  # fmt: skip
    return found


class _Step(NamedTuple):
    """One gather of a scatter: a phase along each axis.

    reads   (axis, start, length) of the input's positions, where not all
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
    sizes = zip(size, kernel, given, *window, strict=True)
    steps, complete = [], True
    for phases in itertools.product(*(_phases(*axis) for axis in sizes)):
        met = [phase for phase in phases if phase is not None]
        if len(met) < len(phases):
            complete = False
            continue
        where, taps, read, length, padding, dilation, crops = zip(*met, strict=True)
        reads = zip(range(2, 2 + len(met)), read, length, given, strict=True)
        steps.append(
            _Step(
                (..., *where), Window((1,) * len(met), padding, dilation),
                tuple((axis, start, n) for axis, start, n, all_ in reads if n < all_),
                taps, (..., *crops),
            )
        )  # fmt: skip
    return steps, complete


def scatter(gather: Gather, nothing: Callable[[Sequence[int]], Tensor], reduced: Reduced) -> Tensor:
    """A scatter as one gather of stride 1 for each phase of the stride: no zero is multiplied.

    nothing: the result of a given shape where no products are summed.
    -> (N, groups * produced, *size).
    """
    x, w, window, size, last = reduced
    assert size is not None
    steps, complete = _steps(tuple(size), w.shape[3:], x.shape[2:], window)
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
