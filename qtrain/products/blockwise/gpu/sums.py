"""Sums in blocks on tensor cores, with the bits of the CPU's: how the kernels are launched."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from quantizers.kernels.gpu.device import INTERPRETED, OPTIONS, bound, power_of_two, serves
from quantizers.kernels.gpu.launcher import launched
from quantizers.kernels.serving import imported

from ....autograd.capture import capturing
from ...engines.gpu.layout import is_wide
from ..rows import Rows

KERNELS = "qtrain.products.blockwise.gpu.triton_sums"
#: of digits, and the largest integers that one, and two, hold
BASE = 2**9
_MOST = BASE, BASE * BASE
#: the most terms whose products one sum of digits adds
_DEEP = 32
#: units of which no sum of products leaves fp32's normal numbers
_LEAST, _LARGEST = 2.0**-48, 2.0**30
#: rows of a program's tile, and of one that makes digits
_ROWS, _DOWN = 64, 64


class _Digits(NamedTuple):
    """An operand as the kernel takes it: (batches, rows, blocks, digits, length)."""

    elements: Tensor
    scale: Tensor

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
    deep = min(max(power_of_two(min(a.step, terms)), 16), _DEEP)
    one, other = _digits(a, 1, deep), _digits(b, positions, deep)
    y = one.scale.new_empty((count, rows, columns))
    _, _, own, _, length = one.elements.shape
    single, alone = length == deep, not (one.two or other.two)
    assert a.largest is not None and b.largest is not None
    across = 64 if columns > 32 and single and alone else 32
    wide = any(is_wide(x.shape, x.stride()) for x in (one.elements, other.elements, y))
    launched(
        KERNELS, "block_sums", (-(-rows // _ROWS) * -(-columns // across) * count, 1, 1),
        one.elements, other.elements, y, one.scale, other.scale, y if table is None else table,
        rows, columns, own, bound(positions * own), bound(length // deep), positions, served,
        chosen, places, count // len(one.scale), count // len(other.scale), *one.scale.stride(),
        *other.scale.stride(), a.unit * b.unit, WIDE=wide, WINDOWS=table is not None,
        TWO_A=one.two, TWO_B=other.two, SINGLE=single,
        LONG=a.largest * b.largest * min(a.step, terms) >= 2**31, ROWS=_ROWS, ACROSS=across,
        DEEP=deep, BAND=8, num_warps=4 if single else 8, num_stages=3, **OPTIONS,
    )  # fmt: skip
    return y.view(*batch, rows, columns)


def _digits(q: Rows, positions: int, deep: int) -> _Digits:
    x = q.elements.flatten(0, -3)
    batches, rows, terms = x.shape
    terms //= positions
    own, count = -(-terms // q.step), _digits_of(q)
    blocks, parts = positions * own, -(-min(q.step, terms) // deep)
    shape = batches, rows, blocks, count, parts * deep
    y = torch.empty(shape, dtype=torch.float16, device=x.device)
    launched(
        KERNELS, "digits", (batches * -(-rows // _DOWN) * blocks * parts, 1, 1), x, y, rows, blocks,
        parts, q.step, own, terms, x.stride(0), x.stride(1), terms * x.stride(2), x.stride(2),
        q.unit**-1, WIDE=any(is_wide(t.shape, t.stride()) for t in (x, y)), TWO=count == 2,
        DEEP=deep, ROWS=_DOWN, num_warps=4, **OPTIONS,
    )  # fmt: skip
    scale = q.scale
    if scale is None:
        return _Digits(y, x.new_ones(()).expand(batches, rows, blocks))
    return _Digits(y, scale.flatten(0, -3))
