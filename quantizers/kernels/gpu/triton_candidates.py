"""The best of a block's scales, each tried on its elements, within Triton kernels: see Scale."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_levels import divisor_of, most, narrow, step_of
from .triton_made import before, made


@triton.jit
def _folded(x, ACROSS: tl.constexpr, DEEP: tl.constexpr):
    """errors.folded of (bands, ACROSS, DEEP), powers of two, by sums -> (bands,)."""
    for n in tl.static_range(0, 14):
        if (ACROSS >> n) > 1:
            halves = tl.reshape(x, (x.shape[0], 2, (ACROSS >> n) // 2, DEEP))
            first, second = tl.split(tl.permute(halves, (0, 2, 3, 1)))
            x = first + second
    for n in tl.static_range(0, 14):
        if (DEEP >> n) > 1:
            pairs = tl.reshape(x, (x.shape[0], 1, 2, (DEEP >> n) // 2))
            first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
            x = first + second
    return tl.reshape(x, (x.shape[0],))


@triton.jit
def best_of(
    v, inside, bound, outer, factor, stored, prescale, tops, rule, target, c0, c1, c2, c3, c4,
    CANDIDATES: tl.constexpr, SQUARED: tl.constexpr, LEVELS: tl.constexpr,
    RECIPROCAL: tl.constexpr, PRESCALED: tl.constexpr, NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr, S_ZERO: tl.constexpr, S_INF: tl.constexpr, S_MODE: tl.constexpr,
    INTEGER: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, INF: tl.constexpr,
    ACROSS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """levels.step_of of candidates: scale, and what elements are divided by, as levels.step_of.

    v: a tile, see triton_blocks; stored: what a scale is multiplied by; tops: of each candidate how
    far the elements reach, and how often that goes into the furthest; SQUARED: errors, or as they
    are.  Nothing wide is computed of what a warp has in common: see triton_levels.
    """
    for n in tl.static_range(0, CANDIDATES):
        reach, ratio = tops[2 * n], tops[2 * n + 1]
        if RECIPROCAL and LEVELS == 2:
            found = tl.div_rn(bound, tl.zeros_like(bound) + rule[0]) * factor * ratio
            found = tl.where(bound == float("inf"), found, most(found))
            if NARROW:
                found = narrow(found, bound, *target, S_SIGNED, S_ZERO, S_INF, S_MODE)
            by = divisor_of(found, bound, outer, reach, LEVELS, RECIPROCAL, NARROW)
        else:
            found, by = step_of(
                bound, outer, factor, reach, 0, 0, 0, 0, *target, LEVELS, RECIPROCAL, False,
                NARROW, S_SIGNED, S_ZERO, S_INF, S_MODE,
            )  # fmt: skip
        y, divisor = before(v, by[:, None, None], prescale, PRESCALED, RECIPROCAL)
        y = made(
            y, divisor, 0.0, 0, v, c0, c1, c2, c3, c4, True, INTEGER, SIGNED, ZERO, INF, 0,
            "nearest_even",
        )  # fmt: skip
        own = tl.where(inside, found[:, None, None], 0.0).to(tl.float64)
        own = own * tl.where(inside, stored[:, None, None], 0.0).to(tl.float64)
        error = tl.abs(y.to(tl.float64) * own - v.to(tl.float64))
        if SQUARED:
            error = error * error
        error = _folded(tl.where(inside, error, 0.0), ACROSS, DEEP)
        if n == 0:
            best, best_by, least = found, by, error
        else:
            better = error < least  # not of a NaN: the first stays
            best, best_by = tl.where(better, found, best), tl.where(better, by, best_by)
            least = tl.where(better, error, least)
    return best, best_by
