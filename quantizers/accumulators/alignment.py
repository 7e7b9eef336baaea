"""Sums of units that align the terms of a group to the largest exponent, and truncate."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import FloatFormat, Format, fp32
from ..rounding import round_to_float, toward_zero
from .exactness import odd_sum
from .models import Aligned


def aligned_sum(
    a: Tensor,
    b: Tensor,
    accumulator: Aligned,
    start: Tensor,
    formats: tuple[Format | None, Format | None],
) -> Tensor:
    """fp64 (..., K), (..., K), (...) -> (...), `Aligned`'s."""
    products = a * b  # exact
    exponents = _exponent(a, formats[0]) + _exponent(b, formats[1])
    promote = accumulator.promote or max(a.shape[-1], 1)
    total = start
    for first in range(0, a.shape[-1], promote):
        if accumulator.promote is not None:
            total, outer = torch.zeros_like(start), total
        for group in range(first, min(first + promote, a.shape[-1]), accumulator.terms):
            own = slice(group, min(group + accumulator.terms, first + promote))
            total = _group(products[..., own], exponents[..., own], total, accumulator)
        if accumulator.promote is not None:
            total = round_to_float(odd_sum(outer, total), fp32)
    return total


def _group(products: Tensor, exponents: Tensor, total: Tensor, accumulator: Aligned) -> Tensor:
    """The sum of a group and of what there is."""
    terms = torch.cat([products, total.unsqueeze(-1)], -1)
    exponents = torch.cat([exponents, _exponent(total, None).unsqueeze(-1)], -1)
    step = exponents.amax(-1, keepdim=True) - accumulator.bits
    whole = torch.ldexp(terms, -step.double()).trunc().sum(-1)  # exact: bits + 2 + log2(terms) bits
    found = torch.ldexp(whole, step.squeeze(-1).double())
    found = round_to_float(found, FloatFormat(8, accumulator.kept), toward_zero)
    return torch.where(torch.isfinite(terms).all(-1), found, terms.sum(-1))


def least_exponent(format: Format | None) -> int:
    """Of normal numbers; what is no floating-point format has fp32's."""
    return (format if isinstance(format, FloatFormat) else fp32).min_exponent


def _exponent(x: Tensor, format: Format | None) -> Tensor:
    """floor(log2 |x|), int64, at least the smallest exponent of the format's normal numbers."""
    smallest = least_exponent(format)
    found = torch.frexp(x).exponent.to(torch.int64) - 1
    return torch.where(x == 0, smallest, found).clamp(min=smallest)
