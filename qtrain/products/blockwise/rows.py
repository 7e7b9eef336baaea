"""Matrices whose rows have a scale for every block of their terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from quantizers import FloatFormat, IntFormat, QTensor
from quantizers.devices.placed import Placed
from quantizers.formats import Format
from quantizers.granularity import expand


def step_of(a: QTensor, b: QTensor) -> int:
    """The length of the blocks in which a product of two matrices is summed: the shorter of theirs.

    ValueError where a longer one is no multiple of it.
    """
    length = a.elements.shape[-1]
    sizes = [min(q.block[-1], max(length, 1)) for q in (a, b)]
    step = min(sizes)
    if any(size < length and size % step for size in sizes):
        raise ValueError(
            f"blocks of {sizes[0]} and {sizes[1]} along a sum of {length} do not nest; make one a "
            f"multiple of the other"
        )
    return step


@dataclass(frozen=True, eq=False)
class Windows:
    """What rows are made of that are put together from places.

    table    (rows, positions), int64: the place of each position of a row; -1 for none: zeros
    places   how many the table chooses among; the next so many serve the next rows
    """

    table: NDArray[np.int64]
    places: int
    _placed: Placed = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_placed", Placed(np.ascontiguousarray(self.table.T, np.int32)))

    def on(self, x: Tensor) -> Tensor:
        """The table, (positions, rows), int32, on the device of x."""
        return self._placed.on(x)

    def of(self, x: Tensor) -> Tensor:
        """(*batch, places, terms) -> (*batch, rows, positions * terms)."""
        rows, positions = self.table.shape
        table = self.on(x).mT.flatten()
        each = F.pad(x.unflatten(-2, (-1, self.places)), (0, 0, 0, 1))  # a place of zeros
        found = each.index_select(-2, torch.where(table < 0, self.places, table))
        joined: Tensor = found.unflatten(-2, (rows, positions)).flatten(-2).flatten(-3, -2)
        return joined


class Rows(NamedTuple):
    """A matrix (*batch, rows, terms) whose rows have a scale for every block of their terms.

    elements  (*batch, rows, terms); with windows (*batch, places, terms of a position)
    scale     (*batch, rows or places, blocks), fp32, or None for 1
    step      terms of a block, which starts anew at each position
    windows   what puts the rows together, or None
    unit      what all elements are multiples of
    largest   element there can be, in units; None: no integer below 2^24, unknown
    """

    elements: Tensor
    scale: Tensor | None
    step: int
    unit: float
    largest: int | None
    windows: Windows | None = None

    def joined(self) -> Rows:
        """Without windows; positions are whole blocks."""
        if self.windows is None:
            return self
        scale = None if self.scale is None else self.windows.of(self.scale)
        elements = self.windows.of(F.pad(self.elements, (0, -self.elements.shape[-1] % self.step)))
        return Rows(elements, scale, self.step, self.unit, self.largest)


def rows_of(q: QTensor, step: int) -> Rows:
    """A quantized matrix (*batch, rows, terms), with a scale for every `step` along its last axis,
    which its blocks there are multiples of."""
    elements, scale = q.unshifted(), q.scale
    *batch, rows, terms = elements.shape
    if scale is not None:
        if q.block[-1] != step:
            count = max(-(-terms // step), 1)
            index = torch.arange(count, device=scale.device) * step // q.block[-1]
            scale = scale.index_select(-1, index)
        shape = (*scale.shape[:-2], rows, scale.shape[-1])
        scale = expand(scale, shape, (*[1] * (scale.dim() - 2), q.block[-2], 1))
        scale = scale.expand(*batch, rows, -1)
    return Rows(elements, scale, step, *_span(q.format))


def _span(fmt: Format | None) -> tuple[float, int | None]:
    """What all elements of a format are multiples of, and the largest, in units of that."""
    if isinstance(fmt, IntFormat):
        return 1.0, fmt.high if fmt.symmetric else fmt.high - fmt.low
    if not isinstance(fmt, FloatFormat):
        return 1.0, None
    unit = 2.0 ** (fmt.min_exponent - fmt.mantissa)
    largest = fmt.largest / unit
    return unit, int(largest) if largest < 2**24 else None
