"""Powers of two: exponents, and where a Scale's rules go from one to the next."""

from __future__ import annotations

import math

from ..formats import FloatFormat, Format, IntFormat
from .scale import Scale

#: bits behind the point of an fp64 number, and all of them set
BITS = 52
ONES = (1 << BITS) - 1


def edge_of(top: float, format: Format, scale: Scale) -> tuple[int, int]:
    """edge, emax: the scale of s * 2^e, 1 <= s < 2, is 2^(e - emax), twice that where the BITS of s
    behind the point are above the edge.  top: of elements of this format, see `Scale.tops`."""
    emax = exponent_of(format.largest)
    if scale.rule == "ocp_floor":
        return ONES, emax
    if scale.rule == "ocp_ceil":
        return 0, emax
    if scale.rule == "even":
        return ONES - (1 << (BITS - 1 - mantissa_of(format))), emax
    emax = exponent_of(top)
    return int(math.ldexp(top, BITS - emax)) & ONES, emax


def exponent_of(number: float) -> int:
    """floor(log2 number) of a positive number, exact."""
    return math.frexp(number)[1] - 1


def mantissa_of(elements: Format) -> int:
    """The bits behind the point of the significand of the format's largest numbers."""
    if isinstance(elements, IntFormat):
        return exponent_of(elements.largest)
    assert isinstance(elements, FloatFormat)  # a table has no such rule
    return elements.mantissa
