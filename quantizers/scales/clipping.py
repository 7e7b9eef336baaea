"""Whether a scale clips what it scales, which makes stochastic rounding biased."""

from __future__ import annotations

import warnings

from ..formats import Format, fp32
from ..rounding import Rounding
from .exponents import exponent_of, mantissa_of
from .scale import Scale

#: by how much more than its rounding a scale must clip to be said to
_SLACK = 1 + 2.0**-20


class ClippingScaleWarning(UserWarning):
    """Elements are rounded stochastically under a scale that clips some of them."""


def reached(scale: Scale, elements: Format) -> float:
    """The least upper bound of what amax becomes before it is rounded and clamped, in elements of
    the format, where the scale is a normal number of its own and does not saturate."""
    if scale.rule == "amax":
        bits, mode = scale.format.mantissa, scale.rounding.mode
        down = 0.0 if scale.format == fp32 or mode == "ceil" else 2.0**-bits
        if mode in ("nearest_even", "half_away"):
            down /= 2  # a significand of 1 + down at most becomes 1
        reach = max(scale.tops(elements)) * (1 + down)
    elif scale.rule == "rceil":
        reach = max(scale.tops(elements))
    else:
        half = 2.0 ** -(mantissa_of(elements) + 1)
        below = {"ocp_floor": 2.0, "ocp_ceil": 1.0, "even": 2 - half}[scale.rule]
        reach = below * 2.0 ** exponent_of(elements.largest)
    if scale.over is not None:  # an inner scale beyond its format saturates
        reach *= max(reached(scale.over, scale.format) / scale.format.largest, 1.0)
    return reach / scale.headroom * scale.prescale


def warn_of_clipping(scale: Scale, elements: Format, rounding: Rounding, stacklevel: int) -> None:
    """A warning where elements are rounded stochastically that the scale clips."""
    reach = reached(scale, elements) if rounding.random_bits else 0.0
    if reach > elements.largest * _SLACK:
        warnings.warn(
            f"scale: {scale} makes the largest magnitude of a granule up to {reach:.4g}, beyond "
            f"{elements}'s {elements.largest:g}: what it clips makes {rounding} rounding biased; "
            f"give rounding=ceil, rule='rceil' or headroom=17/16 (for e4m3 scales)",
            ClippingScaleWarning,
            stacklevel=stacklevel + 1,
        )
