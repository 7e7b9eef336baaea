"""Sums in blocks in one pass on a CPU: operands laid out for the units that add them."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import kernels
from quantizers.devices.memory import fresh
from quantizers.kernels import team
from quantizers.kernels.serving import imported

from .rows import Rows

_KERNELS = f"{__package__}.compiled_sums"


#: rows and columns that are worth no tile, where they have more terms
_FEW = 16
#: elements of b that are laid out at once, so that they stay in a cache
_AT_ONCE = 1 << 20


class _Side(NamedTuple):
    """An operand as `compiled_sums.sums` takes it.

    data    its elements, as bytes or numbers
    steps   bytes of a place of a, a position of b; and of a block in it
    extra   of a, a place of zeros; of b, what the sums of its blocks start from, or None
    """

    data: Tensor
    steps: tuple[int, int]
    extra: Tensor | None


class _Sides(NamedTuple):
    """unit: in which blocks are summed; far: see `_far`; scale: of a, None for 1; right: of b,
    columns of it after columns, with which they are."""

    unit: int
    far: bool
    scale: Tensor | None
    left: _Side
    right: Iterable[tuple[slice, _Side]]


def summed(_: Tensor, a: Rows, b: Rows) -> Tensor | None:
    """`sums.block_sums`; None where no kernel serves the operands."""
    parts = [part for q in (a, b) for part in (q.elements, q.scale) if part is not None]
    if any(part.dtype != torch.float32 or not kernels.serves(part) for part in parts):
        return None
    *batch_a, places, terms = a.elements.shape
    *batch_b, columns = b.elements.shape[:-1]
    if a.windows is None and max(places, columns) < _FEW < terms:
        return None  # a tile would be all but empty
    if a.windows is None and math.prod(batch_a) < math.prod(batch_b):
        # what all share is laid out anew, what they do not is read as it lies
        found = summed(_, b, a)
        return None if found is None else found.transpose(-1, -2)
    batch = torch.broadcast_shapes(batch_a, batch_b)
    count, (positions, rows, table) = math.prod(batch), (1, places, None)
    served = chosen = max(places, 1)
    if a.windows is not None:
        table, chosen = a.windows.table, a.windows.places
        served, positions = table.shape
        rows = places // max(chosen, 1) * served
    tiles = imported(f"{__package__}.compiled_tile")
    if 0 in (rows, columns, terms, count) or tiles is None:
        return None
    sides = _in_bytes(tiles, a, b, positions) or _in_floats(tiles, a, b, positions)
    kernel = sides and kernels.made(_KERNELS, "sums", sides.unit, int(sides.far))
    if sides is None or kernel is None:
        return None
    unit, scale, left, right = sides.unit, sides.scale, sides.left, sides.right
    tile, own = tiles.COLUMNS[unit], -(-terms // a.step)
    ones = a.elements.new_ones
    scale = ones((*batch_a, places, own)) if scale is None else scale.contiguous()
    of_b = ones((*batch_b, columns, positions * own)) if b.scale is None else b.scale
    spans = []
    for span, side in right:
        others = of_b[..., span, :]
        width = others.shape[-2]
        others = F.pad(others, (0, 0, 0, -width % tile)).transpose(-1, -2).contiguous()
        result = scale.new_zeros((count, -(-width // tile), -(-rows // 4) * 4, tile))
        words = (
            count, count // math.prod(batch_a), count // math.prod(batch_b), rows,
            others.shape[-1], positions, terms, a.step, places, served, chosen,
            left.data.data_ptr(), *left.steps, scale.data_ptr(),
            0 if table is None else table.ctypes.data, _address(left.extra),
            side.data.data_ptr(), *side.steps, _address(side.extra),
            others.data_ptr(), result.data_ptr(),
        )  # fmt: skip
        team.run(kernel.address, team.packed(*words), count * rows * width * terms)
        spans.append(result.transpose(1, 2).flatten(2)[:, :rows, :width])
    found = spans[0] if len(spans) == 1 else torch.cat(spans, -1)
    return found.reshape(*batch, rows, columns)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _in_floats(tiles: Any, a: Rows, b: Rows, positions: int) -> _Sides | None:
    """For units of fp32, where they are exact, or fp64."""
    exact = a.largest and b.largest and a.largest * b.largest * a.step <= 2**24
    exact = exact and 2.0**-126 <= a.unit * b.unit < 2.0**96  # as subnormal numbers are not
    unit = tiles.FLOAT if exact else tiles.DOUBLE
    dtype = torch.float32 if exact else torch.float64
    left = _by_blocks(a, a.elements, unit, 0, together=True)
    pack = kernels.made(_KERNELS, "packed", unit)
    if pack is None or left is None:
        return None
    each, blank = 4 * a.step, a.elements.new_zeros(a.step)
    *batch, columns, terms = b.elements.shape
    tile, wide = tiles.COLUMNS[unit], tiles.COLUMNS[unit] * (4 if exact else 8)
    at_once = max(_AT_ONCE // (math.prod(batch) * terms * tile), 1) * tile

    def right() -> Iterator[tuple[slice, _Side]]:
        tiles_at_once = -(-min(at_once, columns) // tile)
        memory = fresh((*batch, tiles_at_once, terms, tile), None, dtype, a.elements)
        for start in range(0, columns, at_once):
            span = slice(start, start + at_once)
            _pack(pack, b.elements[..., span, :].contiguous(), memory)
            yield span, _Side(memory, (wide * (terms // positions), wide * a.step), None)

    steps = each, each * left[1].shape[0]
    return _Sides(unit, _far(a.scale, b.scale), a.scale, _Side(left[0], steps, blank), right())


def _in_bytes(tiles: Any, a: Rows, b: Rows, positions: int) -> _Sides | None:
    """For units of int8, which add four products of bytes at a time; None where there are none, or
    they cannot hold the operands."""
    most = 0 if not a.largest or not b.largest else max(a.largest, b.largest)
    if not 0 < most <= 127 or a.step > 2**15 or not tiles.has_int8():
        return None
    unit, own = tiles.INTEGER, -(-a.elements.shape[-1] // a.step)
    scale = a.scale
    if scale is None:
        scale = a.elements.new_ones((*a.elements.shape[:-1], own))
    by = a.unit * b.unit
    if not 2.0**-126 <= by < 2.0**96 or _far(scale, by=by) or _far(scale, b.scale, by=by):
        return None
    scale = scale * by  # exact
    *batch, columns, terms = b.elements.shape
    left = _by_blocks(a, a.elements, unit, tiles.SHIFT, together=True)
    apart = b.elements.unflatten(-1, (positions, terms // positions))
    lines = left and _by_blocks(b, apart, unit, 0, together=False)
    pack = kernels.made(_KERNELS, "packed", unit)
    if pack is None or not left or not lines:
        return None
    tile, each = tiles.COLUMNS[unit], -(-a.step // 4) * 4
    fours = lines[0].view(torch.float32).view(*batch, columns, -1)
    data = fresh((*batch, -(-columns // tile), fours.shape[-1], tile), None, torch.int32, fours)
    _pack(pack, fours, data)
    start = F.pad(lines[1].view(*batch, columns, -1), (0, 0, 0, -columns % tile))
    start = start.unflatten(-2, (-1, tile)).transpose(-1, -2).contiguous()
    right = _Side(data, (own * each * tile, each * tile), start)
    blank = left[0].new_full((each,), tiles.SHIFT)
    one = _Side(left[0], (each, each * left[1].shape[0]), blank)
    return _Sides(unit, False, scale, one, [(slice(None), right)])


def _by_blocks(
    by: Rows, x: Tensor, unit: int, shift: int, together: bool
) -> tuple[Tensor, Tensor] | None:
    """Elements as a unit takes them, `shift` for 0, each block filled up, and the sums of blocks
    of bytes, (rows, blocks), times -SHIFT; None where one is no integer of a byte, in units.

    together: the same block of all rows, else the blocks of a row, lie one after the other.  Rows
    of a long sum lie so far apart that the cache lines of one drive out another's.
    """
    kernel = kernels.made(_KERNELS, "rows_by_blocks", unit, shift)
    if kernel is None:
        return None
    terms, step, x = x.shape[-1], by.step, x.contiguous()
    rows, own, beyond = x.numel() // terms, -(-terms // step), ctypes.c_int32()
    integer = unit == imported(f"{__package__}.compiled_tile").INTEGER
    each, dtype = (-(-step // 4) * 4, torch.uint8) if integer else (step, torch.float32)
    made = fresh((rows * own * each,), None, dtype, x)
    sums = x.new_empty((rows, own), dtype=torch.int32)
    steps = (each, rows * each) if together else (own * each, each)
    words = (
        rows, terms, step, *steps, x.data_ptr(), made.data_ptr(), sums.data_ptr(),
        ctypes.addressof(beyond),
    )  # fmt: skip
    team.run(kernel.address, team.packed(*words) + struct.pack("d", 1 / by.unit), x.numel())
    return None if beyond.value else (made, sums)


def _pack(kernel: Any, x: Tensor, to: Tensor) -> None:
    """(*batch, columns, terms) of 32 bits -> (*batch, tiles, terms, columns of a tile)."""
    *batch, columns, terms = x.shape
    words = math.prod(batch), columns, terms, x.data_ptr(), to.data_ptr()
    team.run(kernel.address, team.packed(*words), x.numel())


def _far(*scales: Tensor | None, by: float = 1.0) -> bool:
    """Whether the product of scales and `by` may be no normal number of fp32."""
    low = high = by
    for scale in scales:
        if scale is not None:
            least = torch.where(scale == 0, 1.0, scale).amin().item()
            low, high = low * least, high * scale.amax().item()
    return not (low >= 2.0**-126 and high < 2.0**127)
