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
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import QTensor
from quantizers.devices.memory import fresh

from ..convolution import LAST, Convolution, is_channels_last
from ..engines.geometry import Window
from ..operations import Kind, Operand
from ..plan import planned
from .rows import Rows, Windows, rows_of

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Unfolded:
    """The matrices of one product of a convolution; see `matrices.Matrices`.

    batch, smaller, larger   samples, and the spatial sizes of the two maps
    position   the one of the kernel that is unfolded for grad_weight, in C order; None: all
    """

    operation: Convolution
    kind: Kind
    batch: int
    smaller: Sizes
    larger: Sizes
    kernel: Sizes
    position: int | None = None

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
        if any(n < 1 for n in result):
            raise ValueError(
                f"a kernel of {kernel} does not fit into an input of {size}, padding included"
            )
        small, large = (size, result) if operation.transposed else (result, size)
        return Unfolded(operation, kind, input[0], small, large, kernel)

    @property
    def _gathers(self) -> bool:
        """Whether the places that are multiplied are the smaller map's; else the larger's."""
        return self.kind == "grad_weight" or (self.kind == "forward") != self.operation.transposed

    def cut(self, operand: Operand, x: Tensor) -> Tensor:
        groups = self.operation.groups
        if operand == "b" and self.kind != "grad_weight":
            weight: Tensor = x.flatten(3).permute(0, 3, 1, 2)  # groups, position, out, in
            return weight if self.kind == "forward" else weight.transpose(2, 3)
        if self.kind == "grad_weight" and (operand == "a") == self.operation.transposed:
            return self._unfolded(x)
        pixels: Tensor = x.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
        if self.kind != "grad_weight":
            return pixels.flatten(1, 2)
        return pixels.permute(0, 3, 1, 2).flatten(2).unsqueeze(1)

    def parts(self) -> Sequence[Unfolded]:
        if self.kind != "grad_weight":
            return (self,)
        return [replace(self, position=position) for position in range(math.prod(self.kernel))]

    def rows(self, operand: Operand, q: QTensor, step: int) -> Rows:
        found = rows_of(q, step)
        if self.kind == "grad_weight":
            return found
        if operand == "a":
            return found._replace(windows=self._windows(self._gathers))
        # positions behind one another, each in whole blocks
        elements = F.pad(found.elements, (0, -found.elements.shape[-1] % step))
        scale = None if found.scale is None else found.scale.movedim(1, 2).flatten(2)
        return found._replace(elements=elements.movedim(1, 2).flatten(2), scale=scale)

    def _windows(self, gathers: bool) -> Windows:
        window = self.operation.stride, self.operation.padding, self.operation.dilation
        return _met(self.smaller, self.larger, self.kernel, *window, gathers)

    def _unfolded(self, x: Tensor) -> Tensor:
        """The larger map, (N, groups * channels, *S) -> (groups, positions or 1, channels, N *
        places of the smaller)."""
        space = x.dim() - 2
        maps = x.unflatten(1, (self.operation.groups, -1)).permute(1, 2, 0, *range(3, space + 3))
        sides: list[int] = []
        for size, y, k, s, p, d in zip(
            self.larger, self.smaller, self.kernel, self.operation.stride, self.operation.padding,
            self.operation.dilation, strict=True,
        ):  # fmt: skip
            sides = [p, max((y - 1) * s + (k - 1) * d + 1 - p, 0) - size, *sides]
        padded = F.pad(maps, sides).contiguous()
        groups, channels, batch, *steps = padded.stride()
        taps = [step * d for step, d in zip(steps, self.operation.dilation, strict=True)]
        moves = [step * s for step, s in zip(steps, self.operation.stride, strict=True)]
        found = padded.as_strided(
            (padded.shape[0], *self.kernel, *padded.shape[1:3], *self.smaller),
            (groups, *taps, channels, batch, *moves),
        )
        if self.position is not None:
            rest = self.position
            for axis in reversed(range(space)):
                rest, at = divmod(rest, self.kernel[axis])
                found = found.narrow(axis + 1, at, 1)
        made = fresh(found.shape, None, x.dtype, x).copy_(found)
        return made.flatten(1, space).flatten(3)

    def result(self, found: Tensor, like: Tensor) -> Tensor:
        if self.kind == "grad_weight":
            weight: Tensor = found.permute(0, 2, 3, 1).unflatten(3, self.kernel)
            return weight
        places = self.smaller if self._gathers else self.larger
        pixels: Tensor = found.unflatten(1, (self.batch, math.prod(places))).permute(1, 0, 3, 2)
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
) -> Windows:
    """For each place of one map and each position of the kernel, in C order, the place of the other
    that they meet, in C order, -1 where they meet none: (places, positions)."""
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
    table = np.where(inside, found, -1).reshape(math.prod(places), math.prod(kernel))
    return Windows(table, math.prod(others))
