"""Arms of a study against its baseline: differences with intervals, verdicts, runs still needed.

An arm is a recipe (with its model and settings); its runs are independent but for their seeds.
Deviations are pooled over the arms, so that three seeds of five arms give ten degrees of freedom;
runs of one seed are paired over all arms at once (a randomised block design, seeds as blocks) where
that is estimated to help; an arm with a diverged run is compared by itself (Welch).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from ..intervals import Interval
from ..student import inside, quantile, two_sided

#: P(Z <= z) = 0.9: with 80 % power an arm without a difference is within the margin on both sides
_Z90 = 1.2815515655446004
#: how much better a block design must be estimated to be (Fisher's relative efficiency), as it is
#: chosen by the data that it is applied to
_WORTH = 1.5
#: with fewer degrees of freedom chance alone would choose it, and intervals cover too seldom
_FEWEST = 4
#: degrees of freedom from which on t hardly changes: 1.972 here, 1.960 in the end
_LARGE = 200
#: the most runs that are said to be needed
_MOST = 1000
#: 5 %, of one comparison or of all primary ones
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm less the baseline.

    interval   95 %, of this comparison by itself
    margin     what counts as equal, in the unit of the values
    verdict    "equal within 0.01", "differs: [-0.05, -0.02]" or "too little power: needs n = 12";
               of a primary arm, under Holm's correction over these
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
    pool = _pool({arm: runs for arm, runs in values.items() if arm not in diverged})
    found = []
    strictest = _ALPHA / max(1, sum(arm in primary for arm in values if arm != baseline))
    for arm in values:
        if arm != baseline:
            own = None if {arm, baseline} & set(diverged) else pool
            level = strictest if arm in primary else _ALPHA
            one = _difference(values, arm, baseline, margin, own, level)
            found.append(replace(one, primary=arm in primary))
    levels = holm({d.arm: d for d in found if d.primary})
    return [judged(d, levels.get(d.arm, _ALPHA)) for d in found]


@dataclass(frozen=True)
class _Pool:
    """The variance of a run within its arm.

    degrees   of freedom;  per: how many of them each run of all arms adds
    method    in words
    """

    variance: float
    degrees: int
    per: int
    method: str


def _pool(values: Mapping[str, Mapping[int, float]]) -> _Pool | None:
    arms = [list(runs.values()) for runs in values.values()]
    degrees = sum(len(runs) - 1 for runs in arms)
    if not degrees:
        return None
    spread = sum(variance(runs) * (len(runs) - 1) for runs in arms) / degrees
    found = _Pool(spread, degrees, len(arms), "deviation pooled over arms")
    seeds = {tuple(sorted(runs)) for runs in values.values()}
    if len(seeds) > 1 or len(arms) < 2:
        return found
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
    if blocked >= _FEWEST and efficiency * spread > _WORTH * within:
        return _Pool(within, blocked, len(arms) - 1, "paired by seed over all arms")
    return found


def _difference(
    values: Mapping[str, Mapping[int, float]],
    arm: str,
    baseline: str,
    margin: float,
    pool: _Pool | None,
    level: float,
) -> Difference:
    a, b = (list(values[name].values()) for name in (baseline, arm))
    both = 1 / len(a) + 1 / len(b)
    if pool is None:
        parts = [variance(runs) / len(runs) for runs in (a, b)]
        degrees = _welch(parts, (len(a), len(b)))
        pool = _Pool(sum(parts) / both, degrees, 1, "deviations of both arms, Welch")
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
        needs=_needed(margin, pool, level, interval.n if min(p_differs, p_equal) > level else 0),
    )  # fmt: skip


def _welch(parts: Sequence[float], counts: Sequence[int]) -> int:
    """Satterthwaite's degrees of freedom, rounded down: wider."""
    below = sum(p * p / (n - 1) for p, n in zip(parts, counts, strict=True))
    smallest = min(counts) - 1
    return smallest if below == 0 else max(smallest, math.floor(sum(parts) ** 2 / below))


def _p(mean: float, error: float, degrees: int) -> float:
    if error == 0:
        return float(mean == 0)
    return two_sided(mean / error, degrees)


def _p_equal(mean: float, margin: float, error: float, degrees: int) -> float:
    room = margin - abs(mean)
    if room <= 0 or error == 0:
        return float(room <= 0)
    return 1 - inside(room / error, degrees)


def _needed(margin: float, pool: _Pool, level: float, undecided: int) -> int | None:
    """The n for which a true difference of 0 is within the margin with 80 % power; where that many
    runs, `undecided`, told nothing, the n for which half an interval is below half the margin."""

    def enough(n: int, told: bool = True) -> bool:
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
    if level > 0 and one.p_equal <= level:
        verdict = f"equal within {one.margin:g}"
    elif level > 0 and one.p_differs <= level:
        verdict = f"differs: [{low:+.4g}, {high:+.4g}]"
    else:
        needs = "over 1,000" if one.needs is None else str(one.needs)
        verdict = f"too little power: needs n = {needs}"
    return replace(one, verdict=verdict)
