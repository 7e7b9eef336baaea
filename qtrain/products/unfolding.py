"""A convolution's products as products of matrices.

Of its two maps each place y of the smaller (the output; a transposed one's input) meets, with each
position p of the kernel, the place y * stride - padding + p * dilation of the larger, or nothing
where that lies outside.  With the positions side by side, and the channels of each together:

    forward      (n, place) x (p, channels in)       and  out x (p, channels in)
    grad_input   (n, place) x (p, channels out)      and  in x (p, channels out)
    grad_weight  out x (n, place of the smaller)     and  (p, in) x (n, place of the smaller)

(of a transposed one: (p, out) and in).  Blocks along the sum cut the channels of each position
alone: a map is quantized once, place by place, and unfolded then.  In grad_weight they cut (n,
place) in C order; there the larger map is unfolded first, and every position has its own blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from quantizers import QTensor
from quantizers.granularity import expand

from .block_sums import by_steps
from .convolution import LAST, Convolution, is_channels_last
from .engines.geometry import Window
from .operations import Kind, Operand
from .plan import planned

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Unfolded:
    """The matrices of one product of a convolution; see `matrices.Matrices`.

    batch, smaller, larger   samples, and the spatial sizes of the two maps
    """

    operation: Convolution
    kind: Kind
    batch: int
    smaller: Sizes
    larger: Sizes
    kernel: Sizes

    @staticmethod
    def of(
        operation: Convolution,
        kind: Kind,
        input: Sequence[int],
        weight: Sequence[int],
        output: Sequence[int] | None,
    ) -> Unfolded:
        """weight: canonical; output: where it is known, else it follows from the others."""
        kernel, size = tuple(weight[3:]), tuple(input[2:])
        if output is not None:
            result = tuple(output[2:])
        elif operation.transposed:
            result = tuple(operation.scattered(size, kernel))
        else:
            window = Window(operation.stride, operation.padding, operation.dilation)
            result = tuple(window.gathered(size, kernel))
        small, large = (size, result) if operation.transposed else (result, size)
        return Unfolded(operation, kind, input[0], small, large, kernel)

    @property
    def _gathers(self) -> bool:
        """Whether the places that are multiplied are the smaller map's; else the larger's."""
        return self.kind == "grad_weight" or (self.kind == "forward") != self.operation.transposed

    def cut(self, operand: Operand, x: Tensor) -> Tensor:
        groups = self.operation.groups
        if operand == "b" and self.kind != "grad_weight":
            weight = x.flatten(3).permute(0, 3, 1, 2)  # groups, position, out, in
            return weight if self.kind == "forward" else weight.transpose(2, 3)
        pixels = x.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
        if self.kind != "grad_weight":
            return pixels.flatten(1, 2)
        if (operand == "a") == self.operation.transposed:
            windows = self._windows(pixels)  # groups, n, place, position, channels
            return windows.permute(0, 3, 4, 1, 2).flatten(3)
        return pixels.permute(0, 3, 1, 2).flatten(2).unsqueeze(1)

    def whole(self, operand: Operand, q: QTensor, step: int) -> QTensor:
        if self.kind == "grad_weight":
            return by_steps(q, step)
        q = by_steps(q, step)
        elements = F.pad(q.elements, (0, -q.elements.shape[-1] % step))
        scale = q.scale
        if scale is not None:
            scale = expand(scale, (*elements.shape[:-1], scale.shape[-1]), (*q.block[:-1], 1))
            scale = self._joined(operand, scale.expand(*elements.shape[:-1], -1))
        return QTensor(self._joined(operand, elements), scale, None, q.format, (1, 1, step))

    def _joined(self, operand: Operand, x: Tensor) -> Tensor:
        """(groups, kept, positions * channels) of what has some channels a place."""
        if operand == "a":
            return self._windows(x.unflatten(1, (self.batch, -1))).flatten(3).flatten(1, 2)
        return x.movedim(1, 2).flatten(2)

    def _windows(self, pixels: Tensor) -> Tensor:
        """(groups, N, places, channels) -> (groups, N, places, positions, channels)."""
        window = self.operation.stride, self.operation.padding, self.operation.dilation
        met = _met(self.smaller, self.larger, self.kernel, *window, self._gathers)
        index = torch.from_numpy(met).to(pixels.device)
        padded = F.pad(pixels, (0, 0, 0, 1))  # a place of zeros, for those outside
        found: Tensor = padded.index_select(2, index)
        return found.unflatten(2, (-1, math.prod(self.kernel)))

    def result(self, found: Tensor, like: Tensor) -> Tensor:
        if self.kind == "grad_weight":
            return found.permute(0, 2, 3, 1).unflatten(3, self.kernel)
        places = self.smaller if self._gathers else self.larger
        pixels = found.unflatten(1, (self.batch, math.prod(places))).permute(1, 0, 3, 2)
        pixels = pixels.flatten(1, 2).unflatten(2, places)
        last = like.dim() > 3 and is_channels_last(like)
        return pixels.contiguous(
            memory_format=LAST[pixels.dim()] if last else torch.contiguous_format
        )


@planned
def _met(
    smaller: Sizes,
    larger: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    gathers: bool,
) -> NDArray[np.int64]:
    """For each place of one map and each position of the kernel, in C order, the place of the other
    that they meet, in C order; the number of places there where they meet none."""
    places, others = (smaller, larger) if gathers else (larger, smaller)
    dims = len(kernel)
    found, inside = np.zeros([1] * 2 * dims, np.int64), np.ones([1] * 2 * dims, np.bool_)
    axes = zip(places, others, kernel, stride, padding, dilation, strict=True)
    for axis, (size, other, k, s, p, d) in enumerate(axes):
        place, position = np.arange(size)[:, None], np.arange(k)[None]
        if gathers:
            at, good = place * s - p + position * d, True
        else:
            at, rest = np.divmod(place + p - position * d, s)
            good = rest == 0
        good = good & (at >= 0) & (at < other)
        shape = [1] * 2 * dims
        shape[axis], shape[dims + axis] = size, k
        found = found * other + at.reshape(shape)
        inside = inside & good.reshape(shape)
    return np.where(inside, found, math.prod(others)).ravel()
