"""Products as convolutions of two axes, in groups: what kernels are given, and what they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...convolution import Convolution
from ...operations import BatchedMatmul
from ...product import Product
from ..geometry import Window, cropped, reduced
from ..unfolded import matrices

#: how a result (N, G, P, H, W) lies in memory: its axes, the outermost first
_ORDERS: dict[str, tuple[int, ...]] = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 3, 4, 1, 2),
    "matrices": (0, 1, 3, 4, 2),
}
_POINT = Window((1, 1), (0, 0), (1, 1))


class Convolved(NamedTuple):
    """A product of anything but a convolution's grad_weight.

    x, w        views: (N, G, C, H, W), (G, P, C, R, S), with matrices of a batch in G
    size        of the result's two axes
    layout      of the result (N, G, P, *size): see new_result
    scattered   whether the convolution is a scatter (see geometry)
    """

    x: Tensor
    w: Tensor
    size: list[int]
    layout: str
    window: Window
    scattered: bool

    @property
    def channels(self) -> int:
        """Of the result, in all groups."""
        return self.w.shape[0] * self.w.shape[1]


def convolved(product: Product, a: Tensor, b: Tensor, like: Tensor) -> Convolved:
    operation, kind = product
    if not isinstance(operation, Convolution):
        left, right = matrices(product, a, b)
        x, w = left.transpose(1, 2)[None, :, :, None], right.transpose(1, 2)[..., None, None]
        return Convolved(x, w, [1, x.shape[4]], "matrices", _POINT, False)
    shape = reduced(operation, kind, a, b, like)
    window, scattered, w = on_two_axes(shape.window), shape.scattered, shape.w
    x = shape.x.unflatten(1, (w.shape[0], -1))
    if x.dim() == 4:
        x, w = x.unsqueeze(3), w.unsqueeze(3)
        scattered = None if scattered is None else [1, *scattered]
    size = scattered or window.gathered(x.shape[3:], w.shape[3:])
    layout = "channels_last" if shape.channels_last else "contiguous"
    return Convolved(x, w, size, layout, window, scattered is not None)


def on_two_axes(window: Window) -> Window:
    """A single axis is the second."""
    if len(window.stride) == 2:
        return window
    return Window(*((n, *own) for n, own in zip((1, 0, 1), window, strict=True)))


def product_of(y: Tensor, product: Product, a: Tensor, like: Tensor) -> Tensor:
    """A view of the convolution's result, or a part of it."""
    operation, kind = product
    if isinstance(operation, Convolution):
        result = (y.squeeze(3) if len(operation.stride) == 1 else y).flatten(1, 2)
        return cropped(result, like) if kind == "grad_input" else result
    result = y[0, :, :, 0].transpose(1, 2)
    if isinstance(operation, BatchedMatmul) or kind == "grad_weight":
        return result
    return result.reshape(*a.shape[:-1], result.shape[2])


def new_result(
    x: Tensor, w: Tensor, size: Sequence[int], layout: str, dtype: torch.dtype
) -> Tensor:
    """Of a convolution: (N, G, P, *size), with nothing in it."""
    shape = [x.shape[0], w.shape[0], w.shape[1], *size]
    order = _ORDERS[layout]
    y = torch.empty([shape[axis] for axis in order], dtype=dtype, device=x.device)
    return y.permute([order.index(axis) for axis in range(5)])


def tile_of(rows: int, produced: int, groups: int = 1) -> tuple[int, int]:
    """Rows and columns of a program's tile.

    rows, produced: of a group's result; groups: those whose tiles are to keep the GPU busy.
    """
    across = 128 if produced >= 128 and rows * groups >= 8192 else 64 if produced > 32 else 32
    tall = 128 if rows >= 128 and rows * groups >= 4096 else 64
    return tall, across


def moves_of(
    given: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
    scattered: bool,
) -> str:
    """MOVES of triton_places.  given, size: the two axes of the input and of the result."""
    once = set(stride) == {1}
    if math.prod(kernel) == 1 and not any(padding):
        if not scattered or (once and tuple(given) == tuple(size)):
            return "still"
    if not scattered:
        return "gather"
    return "scatter" if once else "scatter 2" if set(stride) == {2} else "scatter any"
