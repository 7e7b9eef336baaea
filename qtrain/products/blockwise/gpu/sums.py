"""Sums in blocks on tensor cores, with the bits of the CPU's: how the kernels are launched."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from quantizers.kernels.gpu.device import (
    INTERPRETED,
    OPTIONS,
    bound,
    multiprocessors,
    power_of_two,
    serves,
)
from quantizers.kernels.gpu.launcher import launched
from quantizers.kernels.serving import imported

from ....autograd.capture import capturing
from ...engines.gpu.layout import is_wide
from ..rows import Rows

KERNELS = "qtrain.products.blockwise.gpu.triton_sums"
DIGITS = "qtrain.products.blockwise.gpu.triton_digits"
#: of digits, and the largest integers that one, and two, hold
BASE = 2**9
_MOST = BASE, BASE * BASE
#: up to this fp32 holds all integers
_EXACT = 2**24
#: the most terms whose products one sum of digits adds
_DEEP = 64
#: units of which no sum of products leaves fp32's normal numbers
_LEAST, _LARGEST = 2.0**-48, 2.0**30
#: scales of a block lie in whole such runs
_PAD = 128


class Tile(NamedTuple):
    """Of a program: rows x columns of the result, blocks at a time, and how it is compiled."""

    rows: int
    across: int
    turn: int
    warps: int
    stages: int
    registers: int | None = None


#: of large results, smaller ones, and those of few rows and columns, whose sums are long; as an
#: H200 was fastest
TILES = (
    Tile(128, 64, 1, 4, 3), Tile(64, 64, 1, 4, 3, 168), Tile(64, 32, 1, 4, 3),
    Tile(32, 32, 2, 4, 4), Tile(16, 32, 4, 2, 3),
)  # fmt: skip
#: programs a multiprocessor is to have
_PROGRAMS = 2


class _Digits(NamedTuple):
    """An operand as the kernel takes it: elements (batches, rows, blocks, digits, length), scale
    (batches, blocks, rows and more, up to whole runs)."""

    elements: Tensor
    scale: Tensor
    unit: float

    @property
    def two(self) -> bool:
        return self.elements.shape[3] == 2


def _digits_of(q: Rows) -> int:
    """How many digits hold an element; 0 where two do not."""
    if q.largest is None or not _LEAST <= q.unit <= _LARGEST:
        return 0
    return next((n for n, most in enumerate(_MOST, 1) if q.largest <= most), 0)


def block_sums(_: Tensor, a: Rows, b: Rows) -> Tensor | None:
    """See sums.block_sums; None where no kernel serves the operands."""
    read = [part for q in (a, b) for part in (q.elements, q.scale) if part is not None]
    if (
        any(part.dtype != torch.float32 for part in read)
        or 0 in (_digits_of(a), _digits_of(b), *a.elements.shape, *b.elements.shape)
        or b.windows is not None
        or not serves(*read)
        or imported(KERNELS) is None
        or not admitted(a.elements.device)
    ):
        return None
    return summed(a, b)


#: largest elements of both operands, and terms of a block, of whose sums some are tried
TRIED = tuple(itertools.product(_MOST, _MOST, (32, 90)))


@cache
def admitted(device: torch.device) -> bool:
    """Whether sums there are exact, of every number of digits, in one part and in several; tried
    once.  Tensor cores before Ampere's add 23 bits, not 24."""
    if not INTERPRETED and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if capturing():
        raise ValueError(
            "a CUDA graph is being captured, in which sums in blocks cannot be tried for the first "
            "time; run a step before the capture"
        )
    with _disable_current_modes(), torch.device("cpu"):
        return all(is_exact(device, *case) for case in TRIED)


def is_exact(device: torch.device, most: int, least: int, step: int) -> bool:
    """Whether the sums of 90 products are float64's, the largest ones too."""

    def pair(a: Tensor, b: Tensor) -> bool:
        one, other = (
            Rows(x.to(device), None, step, 1.0, top) for x, top in ((a, most), (b, least))
        )
        parts = zip(a.double().split(step, -1), b.double().split(step, -1), strict=True)
        want = [(x @ y.mT).float() for x, y in parts]
        return torch.equal(summed(one, other).cpu(), sum(want[1:], want[0]))

    drawn = (
        (torch.arange(n * 90) * 7919 % (2 * top + 1) - top).view(1, n, 90).float()
        for n, top in ((70, most), (40, least))
    )
    largest, others = torch.full((1, 70, 90), float(most)), torch.full((1, 40, 90), float(least))
    # the largest sums of first digits, and of first with second ones
    pairs = (largest, others), (largest, -others), (largest - BASE + 1, others - BASE + 1)
    return pair(*drawn) and all(pair(*extremes) for extremes in pairs)


def summed(a: Rows, b: Rows) -> Tensor:
    """Of operands that the kernels serve."""
    *batch_a, places, terms = a.elements.shape
    *batch_b, columns, _ = b.elements.shape
    batch = torch.broadcast_shapes(batch_a, batch_b)
    count = math.prod(batch)
    rows, positions, served, chosen, table = places, 1, places, places, None
    if a.windows is not None:
        (served, positions), chosen = a.windows.table.shape, a.windows.places
        rows, table = places // chosen * served, a.windows.on(a.elements)
    step = min(a.step, terms)
    deep = min(max(power_of_two(step), 16), _DEEP)
    one, other = _digits(a, 1, deep), _digits(b, positions, deep)
    y = one.scale.new_empty((count, rows, columns))
    own, length = one.elements.shape[2], one.elements.shape[4]
    blocks = positions * own
    parts = length // deep
    way = _way(a, b, step, deep)
    windows = table is not None
    if windows:
        first = 2 if way == "pair" else 0
    else:
        first = 1 if way == "pair" or (one.two and other.two) else 0
    tile = _tile(rows, columns, count, y.device, first)
    turn = tile.turn if parts == 1 and not windows else 1
    launched(
        KERNELS, "block_sums", (-(-rows // tile.rows) * -(-columns // tile.across) * count, 1, 1),
        one.elements, other.elements, y, one.scale, other.scale, y if table is None else table,
        rows, columns, own, blocks, bound(-(-blocks * parts // turn)), served, chosen,
        places, count // len(one.scale), count // len(other.scale),
        one.scale.shape[-1] // _PAD, other.scale.shape[-1] // _PAD, one.unit * other.unit,
        WIDE=any(is_wide(x.shape, x.stride()) for x in (one.elements, other.elements, y)),
        WINDOWS=windows, TWO_A=one.two, TWO_B=other.two, SUM=way, PARTS=parts, ROWS=tile.rows,
        ACROSS=tile.across, DEEP=deep, TURN=turn, BAND=8, num_warps=tile.warps,
        num_stages=tile.stages, maxnreg=None if windows else tile.registers, **OPTIONS,
    )  # fmt: skip
    return y.view(*batch, rows, columns)


def _tile(rows: int, columns: int, count: int, device: torch.device, first: int) -> Tile:
    """The largest of which there are enough, from the first on: some take more registers than there
    are for a larger one.  Before Hopper, whose tensor cores read operands from shared memory, that
    is so of the first two."""
    enough = _PROGRAMS * multiprocessors(device)
    if not INTERPRETED and torch.cuda.get_device_capability(device) < (9, 0):
        first = 2
    for tile in TILES[first:-1]:
        if -(-rows // tile.rows) * -(-columns // tile.across) * count >= enough:
            return tile
    return TILES[-1]


def _way(a: Rows, b: Rows, step: int, deep: int) -> str:
    """How the parts of a block's sum are added: see triton_parts.part."""
    assert a.largest is not None and b.largest is not None
    both = _digits_of(a) + _digits_of(b)
    most = a.largest * b.largest * step
    parts = -(-step // deep)
    if both == 2 and most <= _EXACT:
        return "chained"
    if both > 2 and parts == 1:
        return "single"
    # products of second digits, and what two sums a part lose: half of their last place
    lost = (step * (BASE // 2) ** 2 if both == 4 else 0) + 2 * parts * most / 2**23
    return "pair" if lost <= _EXACT else "long"


def _digits(q: Rows, positions: int, deep: int) -> _Digits:
    x = q.elements.flatten(0, -3)
    batches, rows, terms = x.shape
    terms //= positions
    own, count = -(-terms // q.step), _digits_of(q)
    blocks, parts = positions * own, -(-min(q.step, terms) // deep)
    y = x.new_empty((batches, rows, blocks, count, parts * deep), dtype=torch.float16)
    runs = -(-rows // _PAD)
    z = x.new_empty((batches, blocks, runs * _PAD))
    scale = (
        x.new_ones(()).expand(batches, rows, blocks) if q.scale is None else q.scale.flatten(0, -3)
    )
    unit = q.unit * (BASE if count == 2 else 1)
    launched(
        DIGITS, "digits", (batches * runs * blocks * parts, 1, 1), x, scale, y, z,
        rows, blocks, parts, q.step, own, terms, x.stride(0), x.stride(1), terms * x.stride(2),
        x.stride(2), *scale.stride(), unit**-1,
        ADJACENT=1 if x.stride(2) == 1 else 2 if x.stride(1) == 1 else 0,
        WIDE=any(is_wide(t.shape, t.stride()) for t in (x, y)), TWO=count == 2, DEEP=deep,
        num_warps=8, **OPTIONS,
    )  # fmt: skip
    return _Digits(y, z, unit)
