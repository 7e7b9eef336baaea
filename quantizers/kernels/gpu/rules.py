"""The rules of `Scale` that kernels know: a scale a granule or block, under an outer one or not."""

from __future__ import annotations

import bisect
import math
from functools import lru_cache
from typing import Any, NamedTuple

from quantizers.formats import Format, fp32
from quantizers.granularity import per_tensor
from quantizers.scales.powers import BITS, edge_of, exponent_of
from quantizers.scales.scale import Scale

from ..plan import constants
from .elements import known_of


class Rule(NamedTuple):
    """A scale's rule, as kernels take it.

    numbers   what the largest magnitude of all becomes under an outer scale, the prescale, then
              two tuples: a block's own rule, see triton_levels.step_of, and of the scale's format
    tops      of each candidate, see triton_candidates.best_of; none where there are none
    squared   whether these are chosen by squares of errors, or by errors as they are
    flags     see triton_levels.step_of
    """

    numbers: tuple[float, float, tuple[float, ...], tuple[float, ...]]
    tops: tuple[float, ...]
    squared: bool
    flags: dict[str, Any]


@lru_cache(maxsize=1024)
def rule_of(scale: Scale, format: Format) -> Rule | None:
    """None where the kernel has no such rule."""
    to, over = scale.format, scale.over
    tried = len(scale.candidates) > 1
    if tried and (scale.rule != "amax" or scale.by not in ("mse", "mae")):
        return None
    if scale.correction is not None or scale.random_bits or to.largest < 2.0**-126:
        return None
    if over is not None and (over.format != fp32 or over.granularity != per_tensor):
        return None
    power = 0, 0
    tops = scale.tops(format)
    top = max(tops)
    reach = number = top / scale.headroom
    if over is not None:
        number = reach * over.tops(to)[0] / over.headroom
    if scale.rule != "amax":
        power = _threshold(scale.headroom, *edge_of(top, format, scale))
    exponents = to.min_exponent, exponent_of(to.largest)
    known, flags = known_of(to, scale.rounding, constants(to))
    chosen = {
        "LEVELS": 1 if over is None else 2, "RECIPROCAL": scale.reciprocal,
        "PRESCALED": scale.prescale != 1, "POWER": scale.rule != "amax", "NARROW": to != fp32,
    }  # fmt: skip
    named = {f"S_{name}": flags[name] for name in ("SIGNED", "ZERO", "INF", "MODE")}
    own = reach, *power, *exponents
    each = [number for one in tops for number in (one / scale.headroom, top / one)]
    return Rule(
        (number, scale.prescale, own, known), tuple(each) if tried else (), scale.by == "mse",
        {**chosen, **named},
    )  # fmt: skip


@lru_cache(maxsize=256)
def _threshold(headroom: float, edge: int, emax: int) -> tuple[int, int]:
    """beyond, ahead: the scale of 1.fraction * 2^e is 2^(e + ahead), from a fraction of 23 bits on,
    `beyond`, twice that: what rules._by_bits finds, whose every power of two is the next one's."""

    def exponent(fraction: int) -> int:
        number = (1 + fraction * 2.0**-23) * headroom
        significand, power = math.frexp(number)
        return power - 1 + (math.ldexp(2 * significand - 1, BITS) > edge) - emax

    first = exponent(0)
    fractions = range(1 << 23)
    return bisect.bisect_right(fractions, first, key=exponent), first
