"""Accumulators without an end, beside which an overflow is seen."""

from __future__ import annotations

from dataclasses import replace

from ..formats import FloatFormat, fp32
from .models import Accumulator, Integer, Sequential


def endless(accumulator: Accumulator) -> Accumulator:
    """The same with all the range that there is, 48 bits or fp32's exponents: a sum that it gives
    otherwise has overflowed on the way; what neither holds is infinite or NaN in both."""
    if isinstance(accumulator, Integer):
        return replace(accumulator, bits=48)
    if not isinstance(accumulator, Sequential):
        return accumulator
    product = None if accumulator.product is None else _widest(accumulator.product)
    return replace(accumulator, format=_widest(accumulator.format), product=product)


def _widest(format: FloatFormat) -> FloatFormat:
    """As fine, with as many exponents above as fp32 has."""
    top = fp32.offset + format.offset  # of the exponents' fields, the special one left out
    if top + 1 < 2**format.exponent:
        return format
    exponent = min((top + 1).bit_length() - 1, 8)
    return replace(format, exponent=exponent, bias=format.offset, name="")
