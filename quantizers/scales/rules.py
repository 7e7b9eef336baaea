"""From a granule's range to its scale: the rules of `Scale`, one level of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices.by_device import ByDevice
from ..devices.numbers import constant, divided
from ..elements import elements_of
from ..formats import FloatFormat, Format, IntFormat, fp32
from ..kernels import scales as kernels
from ..noise import fold, needed
from ..rounding import nearest_even, power_of_two, round_to_float
from .powers import BITS, ONES, edge_of
from .scale import Scale

MOST = torch.finfo(torch.float32).max
#: what a quantizer's key is folded with for the noise of its scales; its elements take the key
_NOISE = 1


def bound_of(low: Tensor, high: Tensor, format: Format) -> Tensor:
    """The magnitude that a symmetric format's elements are spread up to.

    low, high: fp32, of one shape -> that shape; not finite where either is not.
    """
    if format.signed:
        return torch.maximum(low.abs(), high.abs())
    # low is clipped, but a non-finite one must still be seen
    return torch.where(torch.isfinite(low), _above(high), float("nan"))


def _above(high: Tensor) -> Tensor:
    """high, +0.0 where it is below or -0.0, whose sign a scale would keep."""
    return high.clamp(min=0.0).abs()


def scale_of(
    low: Tensor,
    high: Tensor,
    format: Format,
    scale: Scale = Scale(),  # noqa: B008
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scale (fp32) and zero point (int32; None for a symmetric format) that spread each range over
    the format: see Quantizer and Scale, of which this is one level.

    low, high: fp32, one entry a block; key: for a stochastic rounding.  A range of zeros has scale
    0, a non-finite one a non-finite scale.
    """
    if not isinstance(format, IntFormat) or format.symmetric:
        bound = bound_of(low, high, format)
        return level(bound, bound, scale.tops(format)[0], format, scale, key), None
    low, high = low.clamp(max=0.0), _above(high)
    half = high * 0.5 - low * 0.5  # in halves, whose difference passes no end of fp32
    found = divided(half, (format.high - format.low) / 2)
    found = in_format(found, half, scale, key)
    divisor = torch.where(found == 0, float("inf"), found)
    zero_point = format.low - torch.round(low / divisor)
    zero_point = zero_point.clamp(format.low, format.high)
    return found, torch.nan_to_num(zero_point).to(torch.int32)


def level(
    amax: Tensor, measured: Tensor, top: float, format: Format, scale: Scale, key: Tensor | None
) -> Tensor:
    """The scale that makes amax the element `top`, by the rule: fp32, amax's shape.

    measured: 0 where amax, before an outer scale divided it, was 0; amax where there is none.
    """
    if scale.rule != "amax":
        return _power(amax, top, format, scale)
    reach = top / scale.headroom
    found = divided(amax, reach)
    if reach < 1:  # what passes fp32 here is no infinity
        beyond = torch.isinf(found) & torch.isfinite(amax)
        found = torch.where(beyond, MOST, found)
    return in_format(found, measured, scale, key)


def in_format(found: Tensor, measured: Tensor, scale: Scale, key: Tensor | None) -> Tensor:
    """A scale rounded to its format; 0 where what was measured is 0, and there alone where the
    format holds no 0."""
    fmt, rounding = scale.format, scale.rounding
    if fmt in (fp32,):
        return found
    if rounding.random_bits:
        key = fold(needed(key, "a stochastic scale"), _NOISE)
    one, whole = found.new_ones([1] * found.dim()), tuple(found.shape)
    rounded = elements_of(found, one, None, whole, fmt, rounding, key)
    return torch.where(measured == 0, found, rounded)


def _power(amax: Tensor, top: float, format: Format, scale: Scale) -> Tensor:
    """2^(e - emax + (s > edge)), amax * headroom being s * 2^e with 1 <= s < 2: where a rule goes
    to the next power of two is all that tells it from another.  In integers, exact."""
    edge, emax = edge_of(top, format, scale)
    return _powers(amax, scale.headroom, emax, edge, scale.format)


def _by_bits(amax: Tensor, headroom: float, emax: int, edge: int, format: FloatFormat) -> Tensor:
    """edge: the bits behind the point of s; format: of powers of two."""
    number = (amax.double() * headroom).view(torch.int64)
    exponent = (number >> BITS) - 1023 + ((number & ONES) > edge).to(torch.int64) - emax
    exponent = exponent.clamp(min=format.min_exponent, max=1023)
    found = power_of_two(exponent, torch.float64)
    found = round_to_float(found, format, nearest_even, overflow=format.when_clipped)
    found = torch.where(torch.isfinite(amax), found.float(), float("nan"))
    return torch.where(amax == 0, 0.0, found)


_powers = ByDevice(_by_bits, cpu=kernels.powers)


def reciprocal(x: Tensor, number: float = 1.0) -> Tensor:
    """number / x, rounded once to fp32, at most its largest."""
    return (constant(number, x) / x).clamp(max=MOST)
