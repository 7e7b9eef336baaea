"""What kernels know of accumulators and operands' formats: constants, and which sums are exact."""

from __future__ import annotations

import math

from quantizers import FloatFormat, IntFormat
from quantizers.accumulators import Sequential
from quantizers.formats import Format

Formats = tuple[Format | None, Format | None]


def constants_of(format: FloatFormat) -> tuple[float, float, float, float, float]:
    """Smallest normal number, step of 1, largest, what a sum beyond becomes, and what is added to
    an infinite one."""
    over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[format.on_overflow]
    infinite = 0.0 if format.has_inf else math.nan
    return 2.0**format.min_exponent, 2.0**-format.mantissa, format.largest, over, infinite


def span(format: Format | None) -> int | None:
    """The largest element, in units of which all are multiples; None where that is not known."""
    if isinstance(format, IntFormat):
        return format.high - format.low
    return int(format.largest / format.smallest) if isinstance(format, FloatFormat) else None


def extent(format: Format | None) -> tuple[int, float, float] | None:
    """Significant bits, smallest and largest magnitude; None where they are not known."""
    if isinstance(format, IntFormat):
        most = format.high - format.low
        return most.bit_length(), 1.0, float(most)
    if isinstance(format, FloatFormat):
        return format.mantissa + 1, format.smallest, format.largest
    return None


def plain(accumulator: Sequential, formats: Formats, precision: int = 53) -> bool:
    """Whether a sum that was rounded to so many bits first is rounded to the same value.

    To nearest, where neither rounding sees what the precision does not hold: it is of a term far
    below half a step of the sum, or of a sum below a term that the format holds (it has as many
    bits) or that overflows (so few numbers has the format).
    """
    if accumulator.rounding.mode not in ("nearest_even", "half_away") or accumulator.compensated:
        return False
    format = accumulator.format
    own = format if accumulator.inside == "exact" else accumulator.product
    numbers = [extent(one) for one in (formats if own is None else (own,))]
    if None in numbers:
        return False
    bits = sum(number[0] for number in numbers if number is not None)
    step = math.prod(number[1] for number in numbers if number is not None)
    held = bits <= format.mantissa + 1 and step * 2.0**precision >= format.smallest_normal
    few = format.smallest * 2.0**precision >= 4.0 * format.largest
    return (held or few) and max(bits, format.mantissa + 1) + format.mantissa + 3 <= precision
