"""Student's t distribution of whole degrees of freedom: finite sums (Abramowitz and Stegun 26.7.3,
26.7.4)."""

from __future__ import annotations

import math
from functools import lru_cache

#: of degrees of freedom, in the sums of a quantile
_MOST = 10_000


def inside(t: float, degrees: int) -> float:
    """P(|T| <= t), t >= 0."""
    angle = math.atan(t / math.sqrt(degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = cos if odd else 1.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= cos * cos * (power - 1) / power
        total += term
    if not odd:
        return sin * total
    return 2 / math.pi * (angle + (sin * total if degrees > 1 else 0.0))


def two_sided(t: float, degrees: int) -> float:
    """P(|T| > |t|): the p-value of a difference of t standard errors."""
    return max(0.0, 1 - inside(abs(t), degrees))


@lru_cache(maxsize=1024)
def quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = level: 12.706 of 0.95 and 1 degree of freedom.  More than 10,000
    degrees of freedom are taken as so many: at 0.95 wider by 1.2e-4 of itself."""
    degrees = min(degrees, _MOST)
    low, high = 0.0, 1.0
    while inside(high, degrees) < level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle, degrees) < level else (low, middle)
    return high
