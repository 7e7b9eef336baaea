"""What kernels know of accumulators and operands' formats: constants, and which sums are exact."""

from __future__ import annotations

import math

from quantizers import FloatFormat, IntFormat
from quantizers.accumulators import Sequential
from quantizers.formats import Format

Formats = tuple[Format | None, Format | None]


def constants_of(format: FloatFormat) -> tuple[int, int, float, float, float]:
    """Mantissa, smallest exponent, largest, what a sum beyond becomes, and what is added to an
    infinite one."""
    over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[format.on_overflow]
    infinite = 0.0 if format.has_inf else math.nan
    return format.mantissa, format.min_exponent, format.largest, over, infinite


def span(format: Format | None) -> int | None:
    """The largest element, in units of which all are multiples; None where that is not known."""
    if isinstance(format, IntFormat):
        return format.high - format.low
    return int(format.largest / format.smallest) if isinstance(format, FloatFormat) else None


def plain(accumulator: Sequential, formats: Formats, precision: int = 53) -> bool:
    """Whether a sum that was rounded to so many bits first is rounded to the same value.

    To nearest, where terms have no more bits than the format: a sum that needs more than the
    precision is of one that the format holds and of far less than half a step, which neither
    rounding sees.
    """
    if accumulator.rounding.mode not in ("nearest_even", "half_away") or accumulator.compensated:
        return False
    format = accumulator.format
    own = format if accumulator.inside == "exact" else accumulator.product
    if own is not None:
        bits, step = own.mantissa + 1, own.smallest
    else:
        a, b = formats
        if not isinstance(a, FloatFormat) or not isinstance(b, FloatFormat):
            return False
        bits, step = a.mantissa + b.mantissa + 2, a.smallest * b.smallest
    near = bits <= format.mantissa + 1 and step * 2.0**precision >= format.smallest_normal
    return near and 2 * format.mantissa + 4 <= precision
