"""Sums in blocks in one pass on a CPU: operands laid out for the units that add them."""

from __future__ import annotations

import ctypes
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import kernels
from quantizers.devices.memory import fresh
from quantizers.kernels import team
from quantizers.kernels.serving import imported

from .rows import Rows

_KERNELS = f"{__package__}.compiled_sums"
_TILES = f"{__package__}.compiled_tile"


class _Laid(NamedTuple):
    """Operands as `compiled_sums.sums` takes them.

    unit          in which a block is summed
    left, right   their elements, as bytes or numbers of the unit
    left_steps    bytes of a place, of a block in it;  right_steps: of a position, of a block in it
    scale         of a, None for 1
    blank         a place of zeros
    start         what the sums of b's blocks start from, or None
    """

    unit: int
    left: Tensor
    left_steps: tuple[int, int]
    right: Tensor
    right_steps: tuple[int, int]
    scale: Tensor | None
    blank: Tensor
    start: Tensor | None


def summed(_: Tensor, a: Rows, b: Rows) -> Tensor | None:
    """`sums.block_sums`; None where no kernel serves the operands."""
    parts = [part for q in (a, b) for part in (q.elements, q.scale) if part is not None]
    if any(part.dtype != torch.float32 or not kernels.serves(part) for part in parts):
        return None
    *batch_a, places, terms = a.elements.shape
    *batch_b, columns, _ = b.elements.shape
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
    if 0 in (rows, columns, terms, count):
        return None
    laid = _in_bytes(a, b, positions) or _in_floats(a, b, positions)
    kernel = laid and kernels.made(_KERNELS, "sums", laid.unit, int(_far(laid.scale, b.scale)))
    if laid is None or kernel is None:
        return None
    tile, own = laid.right.shape[-1], -(-terms // a.step)
    across = -columns % tile
    scale, of_b = laid.scale, b.scale
    ones = a.elements.new_ones
    scale = ones((*batch_a, places, own)) if scale is None else scale.contiguous()
    of_b = ones((*batch_b, columns, positions * own)) if of_b is None else of_b
    of_b = F.pad(of_b, (0, 0, 0, across)).transpose(-1, -2).contiguous()
    result = ones(()).new_zeros((count, (columns + across) // tile, -(-rows // 4) * 4, tile))
    words = (
        count, count // math.prod(batch_a), count // math.prod(batch_b), rows, columns + across,
        positions, terms, a.step, places, served, chosen,
        laid.left.data_ptr(), *laid.left_steps, scale.data_ptr(),
        0 if table is None else table.ctypes.data, laid.blank.data_ptr(),
        laid.right.data_ptr(), *laid.right_steps,
        0 if laid.start is None else laid.start.data_ptr(), of_b.data_ptr(), result.data_ptr(),
    )  # fmt: skip
    team.run(kernel.address, team.packed(*words), count * rows * columns * terms)
    found = result.transpose(1, 2).flatten(2)[:, :rows, :columns]
    return found.reshape(*batch, rows, columns)


def _in_floats(a: Rows, b: Rows, positions: int) -> _Laid | None:
    """For units of fp32, where they are exact, or fp64."""
    tiles = imported(_TILES)
    if tiles is None:
        return None
    exact = a.largest and b.largest and a.largest * b.largest * a.step <= 2**24
    unit = tiles.FLOAT if exact else tiles.DOUBLE
    *batch, columns, terms = b.elements.shape
    tile, pack = tiles.COLUMNS[unit], kernels.made(_KERNELS, "packed", unit)
    if pack is None:
        return None
    left, source = a.elements.contiguous(), b.elements.contiguous()
    dtype = torch.float32 if exact else torch.float64
    right = fresh((*batch, -(-columns // tile), terms, tile), None, dtype, source)
    words = math.prod(batch), columns, terms, source.data_ptr(), right.data_ptr()
    team.run(pack.address, team.packed(*words), right.numel())
    wide = tile * right.element_size()
    return _Laid(
        unit, left, (4 * left.shape[-1], 4 * a.step),
        right, (terms // positions * wide, a.step * wide),
        a.scale, left.new_zeros(left.shape[-1]), None,
    )  # fmt: skip


def _in_bytes(a: Rows, b: Rows, positions: int) -> _Laid | None:
    """For units of int8, which add four products of bytes at a time; None where there are none, or
    they cannot hold the operands."""
    tiles = imported(_TILES)
    most = 0 if not a.largest or not b.largest else max(a.largest, b.largest)
    if tiles is None or not 0 < most <= 127 or a.step > 2**15 or not tiles.has_int8():
        return None
    pack_a = kernels.made(_KERNELS, "bytes_of_rows")
    pack_b = kernels.made(_KERNELS, "bytes_of_columns")
    unit = a.unit * b.unit
    scale = a.scale if a.scale is None else a.scale * unit
    if scale is None:
        shape = *a.elements.shape[:-1], -(-a.elements.shape[-1] // a.step)
        scale = a.elements.new_full(shape, unit)
    if pack_a is None or pack_b is None or _far(scale) or _far(scale, b.scale):
        return None
    *batch, columns, terms = b.elements.shape
    tile, each, terms = tiles.COLUMNS[tiles.INTEGER], -(-a.step // 4) * 4, terms // positions
    one, other = a.elements.contiguous(), b.elements.contiguous()
    *leading, last = one.shape
    own, beyond = -(-last // a.step), ctypes.c_int32()
    left = fresh((*leading, own * each), None, torch.uint8, one)
    told = ctypes.addressof(beyond)
    words = math.prod(leading), last, a.step, one.data_ptr(), left.data_ptr(), told
    team.run(pack_a.address, team.packed(*words) + struct.pack("d", 1 / a.unit), one.numel())
    lines = *batch, -(-columns // tile), positions * own
    right = fresh((*lines, each // 4, tile), None, torch.int32, one)
    start = one.new_empty((*lines, tile), dtype=torch.int32)
    words = (
        math.prod(batch), columns, positions, terms, a.step, other.data_ptr(), right.data_ptr(),
        start.data_ptr(), told,
    )  # fmt: skip
    team.run(pack_b.address, team.packed(*words) + struct.pack("d", 1 / b.unit), other.numel())
    if beyond.value:
        return None
    blank = one.new_full((each,), 128, dtype=torch.uint8)
    return _Laid(
        tiles.INTEGER, left, (own * each, each), right, (own * each * tile, each * tile), scale,
        blank, start,
    )  # fmt: skip


def _far(*scales: Tensor | None) -> bool:
    """Whether the product of scales may be no normal number of fp32."""
    low = high = 1.0
    for scale in scales:
        if scale is not None:
            least = torch.where(scale == 0, 1.0, scale).amin().item()
            low, high = low * least, high * scale.amax().item()
    return not (low >= 2.0**-126 and high < 2.0**127)
