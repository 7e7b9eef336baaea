"""The deviation that two arms of a study are compared with: their own, or that of several arms.

It is pooled over both and over those others whose own fits theirs (F tests), so that three seeds of
five arms give ten degrees of freedom; where the two differ in it, or a run diverged, it is each
arm's (Welch).  Runs of one seed are paired over the pooled arms at once (a randomised block design,
seeds as blocks) where that is estimated to help.

Of 95 %, so chosen, intervals cover 95 to 96 % where deviations are alike; where one of five arms
scatters five times as much, its own cover 92 % with 3 seeds, 95 % with 5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..student import at_least

Runs = Mapping[int, float]
#: how much better a block design must be estimated to be (Fisher's relative efficiency), as it is
#: chosen by the data that it is applied to
_WORTH = 1.5
#: with fewer degrees of freedom chance alone would choose it, and intervals cover too seldom
FEWEST = 4
#: below these chances, were both alike, another arm is not pooled with two that are compared: as it
#: scatters less, which would make them too sure; or more; and the two not with each other.  Chosen
#: for what intervals cover over deviations 1 to 5 times as large and 3 to 8 seeds
_QUIETER, _NOISIER, _UNLIKE = 0.3, 0.05, 0.2


@dataclass(frozen=True)
class Pool:
    """The variance of a run within its arm.

    degrees   of freedom;  per: how many of them each run of all arms adds
    method    in words
    """

    variance: float
    degrees: int
    per: int
    method: str


def variance(runs: Collection[float]) -> float:
    """Of a sample, two values or more."""
    mean = fmean(runs)
    return math.fsum((value - mean) ** 2 for value in runs) / (len(runs) - 1)


def pools(values: Mapping[str, Runs]) -> list[Pool]:
    """What to compare with, and, where more runs would be paired, what these would be compared
    with; [] of no arms."""
    if not values:
        return []
    arms = [list(runs.values()) for runs in values.values()]
    degrees = sum(len(runs) - 1 for runs in arms)
    spread = sum(variance(runs) * (len(runs) - 1) for runs in arms) / degrees
    text = f"deviation pooled over {'both' if len(arms) == 2 else len(arms)} arms"
    found = Pool(spread, degrees, len(arms), text)
    seeds = {tuple(sorted(runs)) for runs in values.values()}
    if len(seeds) > 1:
        return [found]
    rows = [[runs[seed] for runs in values.values()] for seed in seeds.pop()]
    arm_means = [fmean(column) for column in zip(*rows, strict=True)]
    whole = fmean(arm_means)
    residuals = [
        value - fmean(row) - mean + whole
        for row in rows
        for value, mean in zip(row, arm_means, strict=True)
    ]
    blocked = (len(rows) - 1) * (len(arms) - 1)
    within = sum(r * r for r in residuals) / blocked
    efficiency = (blocked + 1) * (degrees + 3) / ((blocked + 3) * (degrees + 1))
    if efficiency * spread <= _WORTH * within:
        return [found]
    text = "paired by seed" + (f" over {len(arms)} arms" if len(arms) > 2 else "")
    paired = Pool(within, blocked, len(arms) - 1, text)
    return [paired] if blocked >= FEWEST else [found, paired]


def alike(values: Mapping[str, Runs], arm: str, baseline: str) -> dict[str, Runs]:
    """The arms to pool with two that are compared, in order; none where the two are not alike."""
    spread = {name: variance(runs.values()) for name, runs in values.items()}
    degrees = {name: len(runs) - 1 for name, runs in values.items()}

    def chances(one: float, d1: int, other: float, d2: int) -> tuple[float, float]:
        if one == other:
            return 1.0, 1.0
        more = at_least(one / other, d1, d2) if other else 0.0
        return more, 1 - more

    two = chances(spread[arm], degrees[arm], spread[baseline], degrees[baseline])
    if 2 * min(two) < _UNLIKE:
        return {}
    both = degrees[arm] + degrees[baseline]
    pair = (spread[arm] * degrees[arm] + spread[baseline] * degrees[baseline]) / both
    found = {}
    for name, runs in values.items():
        more, less = chances(spread[name], degrees[name], pair, both)
        if name in (arm, baseline) or (more >= _NOISIER and less >= _QUIETER):
            found[name] = runs
    return found


def apart(a: Sequence[float], b: Sequence[float]) -> Pool:
    """Two arms' own deviations, with Satterthwaite's degrees of freedom, rounded down: wider."""
    parts = [variance(runs) / len(runs) for runs in (a, b)]
    below = sum(part**2 / (len(runs) - 1) for part, runs in zip(parts, (a, b), strict=True))
    smallest = min(len(a), len(b)) - 1
    degrees = smallest if below == 0 else max(smallest, math.floor(sum(parts) ** 2 / below))
    both = 1 / len(a) + 1 / len(b)
    return Pool(sum(parts) / both, degrees, 1, "each arm's own deviation, Welch")
