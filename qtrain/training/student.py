"""Student's t and Fisher's F distribution, by the regularized incomplete beta function
(Abramowitz and Stegun 26.5.2, 26.5.8, 26.6.2, 26.7.1)."""

from __future__ import annotations

import math
from functools import lru_cache

#: of degrees of freedom, in the search of a quantile
_MOST = 10_000


def beta(x: float, a: float, b: float) -> float:
    """I_x(a, b): P(X <= x) of a beta distribution, to some 1e-13; x from 0 to 1."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side is the shorter
        return 1 - beta(1 - x, b, a)
    gammas = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    above, below = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = below
    for m in range(1, 10_000):  # Lentz's evaluation of the continued fraction, from its front
        before = fraction
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            below, above = 1 / (1 + term * below), 1 + term / above
            fraction *= above * below
        if abs(fraction - before) <= 1e-15 * abs(fraction):
            break
    return math.exp(gammas + a * math.log(x) + b * math.log1p(-x)) / a * fraction


def inside(t: float, degrees: int) -> float:
    """P(|T| <= t), t >= 0."""
    return beta(t * t / (degrees + t * t), 0.5, degrees / 2)


def two_sided(t: float, degrees: int) -> float:
    """P(|T| > |t|): the p-value of a difference of t standard errors."""
    return beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def at_least(ratio: float, degrees: int, others: int) -> float:
    """P(F >= ratio) of two variances of one size, of so many degrees of freedom."""
    return beta(others / (others + degrees * ratio), others / 2, degrees / 2)


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
