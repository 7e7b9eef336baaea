"""Which kernel computes an accumulator's sums, and in which numbers.

fp32 is enough where it holds every product, and a sum rounded to odd, of 24 bits, is rounded as
that of fp64; else kernels compute in fp64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from quantizers import FloatFormat
from quantizers.accumulators import Accumulator, Aligned, Integer, Sequential
from quantizers.accumulators.alignment import least_exponent
from quantizers.kernels.gpu.device import bound

from ..numbers import Formats, constants_of, extent, plain, span

SEQUENTIAL = "qtrain.products.accumulated.gpu.triton_sequential"
UNITS = "qtrain.products.accumulated.gpu.triton_units"
#: of products that stay far from fp32's ends, sums and what the kernels scale included
_LEAST, _LARGEST = 2.0**-100, 2.0**40
#: the largest of a format beyond which sums that fp32 must hold may grow by their rounding alone
_GROWN = 2.0**100
_HELD = "nearest_even", "half_away", "toward_zero"


class Kernel(NamedTuple):
    """first: of the tiles; words, constants: what follows the operands' steps."""

    module: str
    name: str
    first: int
    words: tuple[Any, ...]
    constants: dict[str, Any]


@lru_cache(maxsize=1024)
def chosen(accumulator: Accumulator, formats: Formats, terms: int) -> Kernel | None:
    """None where there is none."""
    if isinstance(accumulator, Sequential):
        return _sequential(accumulator, formats, terms)
    if isinstance(accumulator, Aligned):
        return _aligned(accumulator, formats, terms)
    if isinstance(accumulator, Integer) and accumulator.overflow == "saturate":
        half, spans = 2.0 ** (accumulator.bits - 1), [span(one) for one in formats]
        most = 2.0**48 if None in spans else spans[0] * spans[1]  # type: ignore[operator]
        wide = half + most > 2**24
        return Kernel(UNITS, "saturated", 0, (bound(terms), -half), {"WIDE": wide})
    return None


def _sequential(accumulator: Sequential, formats: Formats, terms: int) -> Kernel | None:
    format, product, rounding = accumulator.format, accumulator.product, accumulator.rounding
    exact, bits, chunked = accumulator.inside == "exact", rounding.random_bits, accumulator.chunk
    wide = not _fits(formats) or any(
        own.mantissa + bits > 21
        or own.min_exponent > 60
        or (own.largest > _GROWN and rounding.mode not in _HELD)
        for own in (format, product or format)
    )
    if exact:
        spans = [span(one) for one in formats]
        if None in spans:
            return None
        most = spans[0] * spans[1] * min(chunked or terms, terms)  # type: ignore[operator]
        if most > 2**53:
            return None
        wide |= most > 2**24
    constants = {
        "WIDE": wide, "ODD": not plain(accumulator, formats, 53 if wide else 24),
        "PRODUCT": product is not None, "CHUNKED": chunked is not None, "EXACT": exact,
        "COMPENSATED": accumulator.compensated, "RANDOM": bits, "MODE": rounding.mode,
    }  # fmt: skip
    words = bound(terms), chunked or 1, constants_of(format), constants_of(product or format)
    twice = wide + (chunked is not None) + accumulator.compensated  # what a program keeps
    return Kernel(SEQUENTIAL, "sequential", max(twice - 1, 0), words, constants)


def _aligned(accumulator: Aligned, formats: Formats, terms: int) -> Kernel:
    each, kept = min(accumulator.terms, terms), FloatFormat(8, accumulator.kept)
    least = [2.0 ** least_exponent(one) for one in formats]
    wide = (
        not _fits(formats)
        or least[0] * least[1] < _LEAST
        or (accumulator.terms + 1) * 2 ** (accumulator.bits + 2) > 2**24
        or accumulator.kept > 21
    )
    words = (
        terms, bound(-(-terms // each)), bound(each), accumulator.promote or 1, *least,
        2.0**accumulator.bits, constants_of(kept),
    )  # fmt: skip
    constants = {"WIDE": wide, "PROMOTED": accumulator.promote is not None}
    return Kernel(UNITS, "aligned", int(wide), words, constants)


def _fits(formats: Formats) -> bool:
    """Whether fp32 holds every product, far from its ends."""
    numbers = [extent(one) for one in formats]
    if None in numbers:
        return False
    (bits, least, most), (own, small, large) = numbers  # type: ignore[misc]
    return (
        bits + own <= 24 and least * small >= _LEAST and max(most, large, most * large) <= _LARGEST
    )
