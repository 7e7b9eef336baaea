"""Arms of a study against its baseline: differences with intervals, verdicts, runs still needed.

An arm is a recipe (with its model and settings); its runs are independent but for their seeds.
What deviation two arms are compared with: `pooling`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..intervals import Interval
from ..student import inside, quantile, two_sided
from .pooling import FEWEST, Pool, alike, apart, pools

#: P(Z <= z) = 0.9: with 80 % power an arm without a difference is within the margin on both sides
_Z90 = 1.2815515655446004
#: degrees of freedom from which on t hardly changes: 1.972 here, 1.960 in the end
_LARGE = 200
#: the most runs that are said to be needed
_MOST = 1000
#: the verdict where chance is compared with chance
BOTH = "both diverged: nothing to compare"
#: 5 %, of one comparison or of all primary ones
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm less the baseline.

    interval   95 %, of this comparison by itself
    margin     what counts as equal, in the unit of the values
    verdict    "equal within 0.01", "differs: [-0.05, -0.02]", "too little power: needs n = 12" or,
               where all runs of both did, "both diverged: nothing to compare"; of a primary arm,
               under Holm's correction over these
    p_differs  of no difference;  p_equal: of one as large as the margin (two one-sided tests,
               doubled: at 0.05 the 95 % interval touches the margin)
    needs      runs an arm for 80 % power to show that an arm without a difference is equal within
               the margin, were it the first or the only one judged (of m primary arms at 5 % / m);
               where these are there and tell nothing, for an interval that cannot hold both 0 and
               the margin; None above 1,000
    """

    arm: str
    baseline: str
    interval: Interval
    margin: float
    verdict: str
    p_differs: float
    p_equal: float
    needs: int | None
    primary: bool


def differences(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    margin: float,
    *,
    primary: Sequence[str] = (),
    diverged: Sequence[str] = (),
) -> list[Difference]:
    """Every other arm less the baseline.

    values     arm -> seed -> the run's figure, of a diverged run that of chance
    primary    arms whose verdicts hold together at 95 % (Holm); the others are exploratory
    diverged   arms with a diverged run

    ValueError where the baseline or the other arms have fewer than two runs.
    """
    for arm, runs in values.items():
        if len(runs) < 2:
            raise ValueError(f"arm {arm!r}: got {len(runs)} run, need two or more to compare")
    whole = {arm: runs for arm, runs in values.items() if arm not in diverged}
    found = []
    strictest = _ALPHA / max(1, sum(arm in primary for arm in values if arm != baseline))
    for arm in values:
        if arm != baseline:
            like = {} if {arm, baseline} & set(diverged) else alike(whole, arm, baseline)
            level = strictest if arm in primary else _ALPHA
            one = _difference(values, arm, baseline, margin, pools(like), level)
            if {arm, baseline} <= set(diverged) and one.interval.low == one.interval.high == 0:
                one = replace(one, p_differs=1.0, p_equal=1.0, needs=None, verdict=BOTH)
            found.append(replace(one, primary=arm in primary))
    levels = holm({d.arm: d for d in found if d.primary})
    return [judged(d, levels.get(d.arm, _ALPHA)) for d in found]


def _difference(
    values: Mapping[str, Mapping[int, float]],
    arm: str,
    baseline: str,
    margin: float,
    found: Sequence[Pool],
    level: float,
) -> Difference:
    a, b = (list(values[name].values()) for name in (baseline, arm))
    both = 1 / len(a) + 1 / len(b)
    found = found or [apart(a, b)]
    pool = found[0]
    error, degrees = math.sqrt(pool.variance * both), pool.degrees
    mean = fmean(b) - fmean(a)
    half = quantile(0.95, degrees) * error
    interval = Interval(
        value=mean, low=mean - half, high=mean + half, n=min(len(a), len(b)),
        method=f"{pool.method}, Student t of {degrees}",
    )  # fmt: skip
    p_differs, p_equal = _p(mean, error, degrees), _p_equal(mean, margin, error, degrees)
    return Difference(
        arm=arm, baseline=baseline, interval=interval, margin=margin, verdict="",
        p_differs=p_differs, p_equal=p_equal, primary=False,
        needs=_needed(margin, found, level, interval.n if min(p_differs, p_equal) > level else 0),
    )  # fmt: skip


def _p(mean: float, error: float, degrees: int) -> float:
    if error == 0:
        return float(mean == 0)
    return two_sided(mean / error, degrees)


def _p_equal(mean: float, margin: float, error: float, degrees: int) -> float:
    room = margin - abs(mean)
    if room <= 0 or error == 0:
        return float(room <= 0)
    return 1 - inside(room / error, degrees)


def _needed(margin: float, pools: Sequence[Pool], level: float, undecided: int) -> int | None:
    """By the pool of so many runs, the n for which a true difference of 0 is within the margin with
    80 % power; where that many runs, `undecided`, told nothing, the n for which half an interval is
    below half the margin."""

    def enough(n: int, told: bool = True) -> bool:
        pool = next((p for p in reversed(pools) if p.per * (n - 1) >= FEWEST), pools[0])
        t = quantile(1 - level, min(pool.per * (n - 1), _LARGE))
        return margin >= math.sqrt(2 * pool.variance / n) * (t + _Z90 if told else 2 * t)

    counts = range(2, _MOST + 1)
    found = bisect_left(counts, True, key=enough) + 2
    if found <= undecided:
        found = bisect_left(counts, True, key=lambda n: enough(n, told=False)) + 2
    return found if found <= _MOST else None


def holm(primary: Mapping[str, Difference]) -> dict[str, float]:
    """Of each primary comparison, by name, the level at which it is judged; 0 from the first that
    fails on.

    Of "no difference" and "as large as the margin" at most one is true of an arm, so the smaller p
    of the two is one test.  (Holm 1979)
    """
    levels: dict[str, float] = {}
    failed = False
    smaller = {name: min(one.p_differs, one.p_equal) for name, one in primary.items()}
    for done, name in enumerate(sorted(smaller, key=smaller.__getitem__)):
        level = _ALPHA / (len(primary) - done)
        failed = failed or smaller[name] > level
        levels[name] = 0.0 if failed else level
    return levels


def judged(one: Difference, level: float) -> Difference:
    """With its verdict at a level."""
    low, high = one.interval.low, one.interval.high
    if one.verdict == BOTH:
        return one
    if level > 0 and one.p_equal <= level:
        verdict = f"equal within {one.margin:g}"
    elif level > 0 and one.p_differs <= level:
        verdict = f"differs: [{low:+.4g}, {high:+.4g}]"
    else:
        needs = "over 1,000" if one.needs is None else str(one.needs)
        verdict = f"too little power: needs n = {needs}"
    return replace(one, verdict=verdict)
