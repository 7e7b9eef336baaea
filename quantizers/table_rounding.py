"""Rounding to the values of a table."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from . import checks, tensor_checks
from .devices.by_device import laid_out_like
from .formats import TableFormat
from .formats.table_format import below
from .noise import uniform_integers
from .rounding import Rounding, nearest_even

#: the roundings to a table: to the nearest value, or to one of two neighbours at random
MODES = ("nearest_even", "stochastic")


def round_to_table(
    x: Tensor,
    fmt: TableFormat,
    rounding: Rounding = nearest_even,
    bits: Tensor | None = None,
    *,
    source: Tensor | None = None,
) -> Tensor:
    """x rounded once to the values of `fmt`: see TableFormat.  fp32 or fp64, any shape -> same.

    Nearest: x is compared with the exact midpoints of neighbours.  Stochastic, low <= x <= high
    being neighbours: high where (u + 1/2) / 2^random_bits < (x - low) / (high - low), in fp64, u
    uniform on 0 .. 2^random_bits - 1; values are fixed points.

    bits: int32 random bits of x's shape; source: what x was before it was scaled, as in
    `round_to_float`.  Raises ValueError for another rounding, and for a stochastic one without
    bits.
    """
    x = tensor_checks.wide(x)
    checks.instance("fmt", fmt, TableFormat, "a TableFormat")
    checks.choice("rounding", checks.instance("rounding", rounding, Rounding, "").mode, MODES)
    values = torch.tensor(fmt.values, dtype=x.dtype, device=x.device)
    packed = x.contiguous()
    if rounding.random_bits:
        if bits is None:
            raise ValueError("stochastic rounding needs random bits; pass key= to the quantizer")
        tensor_checks.random("bits", bits, x)
        lower = below(packed, values)
        low, high = values[lower].double(), values[lower + 1].double()
        fraction = ((packed.double() - low) / (high - low)).clamp_(0.0, 1.0)
        draw = uniform_integers(bits, rounding.random_bits).double().add_(0.5)
        place = lower + (draw < fraction * 2.0**rounding.random_bits)
    else:
        bounds = torch.tensor(_bounds(fmt.values, x.dtype), dtype=x.dtype, device=x.device)
        place = torch.bucketize(packed, bounds)
    known = torch.isfinite(x if source is None else source)
    return laid_out_like(torch.where(known, values[place], float("nan")), x)


@lru_cache(maxsize=256)
def _bounds(values: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
    """The largest number of a dtype that is rounded to each value but the last: the midpoint to the
    next, or what is below it."""
    found = []
    for low, high in pairwise(values):
        middle = (Fraction(low) + Fraction(high)) * Fraction(1, 2)
        bound = torch.tensor(float(middle), dtype=dtype, device="cpu")
        while Fraction(bound.item()) > middle:
            bound = torch.nextafter(bound, bound.new_tensor(-math.inf))
        found.append(bound.item())
    return tuple(found)
