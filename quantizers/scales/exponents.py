"""Exponents of numbers and formats, exact."""

from __future__ import annotations

import math

from ..formats import FloatFormat, Format, IntFormat


def exponent_of(number: float) -> int:
    """floor(log2 number) of a positive number, exact."""
    return math.frexp(number)[1] - 1


def mantissa_of(elements: Format) -> int:
    """The bits behind the point of the significand of the format's largest numbers."""
    if isinstance(elements, IntFormat):
        return exponent_of(elements.largest)
    assert isinstance(elements, FloatFormat)  # a table has no such rule
    return elements.mantissa
