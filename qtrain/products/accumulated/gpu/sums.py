"""Sums of accumulators on a GPU, with the bits of the CPU's: how the kernels are launched."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.accumulators import Accumulator, Integer
from quantizers.kernels.gpu.device import OPTIONS, multiprocessors, serves
from quantizers.kernels.gpu.launcher import launched
from quantizers.kernels.serving import imported

from ...engines.gpu.layout import is_wide
from ..numbers import Formats
from .choice import SEQUENTIAL, chosen


class Tile(NamedTuple):
    """Outputs of a program of four warps."""

    rows: int
    across: int


#: the more a program keeps of an output the smaller, and of results that are small
TILES = Tile(32, 64), Tile(32, 32), Tile(16, 32), Tile(8, 32)
#: programs a multiprocessor is to have
_PROGRAMS = 2
#: keys that a program makes
_KEYS = 1024


def by_kernels(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor | None:
    """See sums.accumulated; None where no kernel serves: of exact sums and of integers that wrap,
    which are matrix products, and of operands that are not fp32."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns, terms = a.shape[-2], b.shape[-2], a.shape[-1]
    count = math.prod(batch)
    if (
        any(x.dtype != torch.float32 for x in (a, b))
        or 0 in (count, rows, columns, terms)
        or (accumulator.noisy and (key is None or count * rows * columns >= 2**31))
        or not serves(a, b, key)
        or imported(SEQUENTIAL) is None
    ):
        return None
    kernel = chosen(accumulator, formats, terms)
    if kernel is None:
        return None
    left, right = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    dtype = torch.int64 if isinstance(accumulator, Integer) else torch.float32
    y = a.new_empty((count, rows, columns), dtype=dtype)
    keys = y if key is None or not accumulator.noisy else _keys(key, 4 * terms)
    tall, across = _tile(kernel.first, count, rows, columns, a.device)
    launched(
        kernel.module, kernel.name, (count * -(-rows // tall) * -(-columns // across), 1, 1),
        left, right, y, keys, rows, columns, count // len(left), count // len(right),
        *left.stride(), *right.stride(), *kernel.words,
        FAR=any(is_wide(x.shape, x.stride()) for x in (left, right, y)), **kernel.constants,
        ROWS=tall, ACROSS=across, BAND=8, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return y.view(*batch, rows, columns)


def _keys(key: Tensor, count: int) -> Tensor:
    """The key folded with every number below the count."""
    found = key.new_empty(count)
    grid = -(-count // _KEYS), 1, 1
    launched(SEQUENTIAL, "keys", grid, key, found, count, BLOCK=_KEYS, num_warps=4)
    return found


def _tile(first: int, count: int, rows: int, columns: int, device: torch.device) -> Tile:
    """The largest of which there are enough, from the first on."""
    enough = _PROGRAMS * multiprocessors(device)
    for tile in TILES[first:-1]:
        if count * -(-rows // tile.rows) * -(-columns // tile.across) >= enough:
            return tile
    return TILES[-1]
