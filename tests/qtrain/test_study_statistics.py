"""A study's intervals cover as often as they say, and its verdicts say what they may."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, variance

import pytest

from qtrain.training.student import at_least, inside, quantile, two_sided
from qtrain.training.study.differences import Difference, differences

Values = dict[str, dict[int, float]]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12, 30, 121])
def test_students_distribution_is_the_integral_of_its_density(degrees: int) -> None:
    factor = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    factor /= math.sqrt(degrees * math.pi)
    for t in (0.3, 1.0, 2.5, 8.0):
        steps = 4000
        width = t / steps
        density = [
            factor * (1 + (i * width) ** 2 / degrees) ** (-(degrees + 1) / 2)
            for i in range(steps + 1)
        ]
        weights = [1, *[4 if i % 2 else 2 for i in range(1, steps)], 1]
        integral = width / 3 * sum(w * d for w, d in zip(weights, density, strict=True))
        assert inside(t, degrees) == pytest.approx(2 * integral, abs=1e-9)
        assert quantile(inside(t, degrees), degrees) == pytest.approx(t, rel=1e-6)
        assert two_sided(-t, degrees) == pytest.approx(1 - 2 * integral, abs=1e-9)


def test_students_quantiles_are_the_tables() -> None:
    table = {1: 12.7062, 2: 4.3027, 5: 2.5706, 10: 2.2281, 30: 2.0423}
    assert {n: round(quantile(0.95, n), 4) for n in table} == table
    assert quantile(0.95, 100_000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=3e-4)


def drawn(
    rng: random.Random, means: dict[str, float], n: int, *, spread: float = 1.0, shared: float = 0.0
) -> Values:
    """Runs whose seeds share a part of their deviation: a correlation of shared^2."""
    seeds = [rng.gauss(0, 1) for _ in range(n)]
    own = math.sqrt(1 - shared * shared)
    return {
        arm: {i: mean + spread * (shared * seeds[i] + own * rng.gauss(0, 1)) for i in range(n)}
        for arm, mean in means.items()
    }


def only(values: Values, **how: object) -> Difference:
    return next(d for d in differences(values, "a", 1.0, **how) if d.arm == "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(("arms", "n"), [("ab", 3), ("abcde", 3), ("abc", 6)])
def test_intervals_cover_as_often_as_they_say(arms: str, n: int, shared: float) -> None:
    """Also where the data chose whether to pair: 95 %, within what 1,000 draws can tell."""
    rng, trials = random.Random(n), 1000
    means = {arm: 0.5 * i for i, arm in enumerate(arms)}
    found = [only(drawn(rng, means, n, shared=shared)).interval for _ in range(trials)]
    hits = sum(i.low <= 0.5 <= i.high for i in found) / trials
    assert 0.93 <= hits <= (1 if shared else 0.97)
    if shared == 0.95:
        chosen = sum("paired" in i.method for i in found) / trials
        assert chosen > 0.8 if len(arms) > 2 else chosen == 0  # from 4 degrees of freedom on


def test_a_pooled_interval_is_by_hand() -> None:
    values = {"a": {0: 1.0, 1: 3.0, 2: 2.0}, "b": {0: 4.0, 5: 6.0}, "c": {0: 7.0, 1: 9.0, 2: 7.5}}
    pooled = (2 * variance([1, 3, 2]) + variance([4, 6]) + 2 * variance([7, 9, 7.5])) / 5
    half = quantile(0.95, 5) * math.sqrt(pooled * (1 / 3 + 1 / 2))
    interval = only(values).interval
    assert interval.value == 3.0 and interval.n == 2
    assert (interval.low, interval.high) == pytest.approx((3 - half, 3 + half))
    assert interval.method == "deviation pooled over 3 arms, Student t of 5"


def test_a_block_design_is_by_hand() -> None:
    rng = random.Random(1)
    values = drawn(rng, {"a": 0, "b": 1, "c": 2}, 4, shared=0.99)
    means = {arm: fmean(runs.values()) for arm, runs in values.items()}
    whole = fmean(means.values())
    rest = [
        runs[i] - means[arm] - fmean(values[other][i] for other in values) + whole
        for arm, runs in values.items()
        for i in runs
    ]
    half = quantile(0.95, 6) * math.sqrt(sum(r * r for r in rest) / 6 * (2 / 4))
    interval = only(values).interval
    assert interval.method == "paired by seed over 3 arms, Student t of 6"
    assert interval.high - interval.value == pytest.approx(half)


@pytest.mark.parametrize("scatters", ["a", "b", "c"])
@pytest.mark.parametrize(("n", "least"), [(3, 0.90), (6, 0.93)])
def test_intervals_cover_where_one_arm_scatters_more(scatters: str, n: int, least: float) -> None:
    """Five times as much as four others: pooled with them, it covers 78 %."""
    rng, trials, hits = random.Random(n), 500, 0
    for _ in range(trials):
        values = drawn(rng, dict.fromkeys("abcde", 0.0), n)
        values[scatters] = {seed: 5 * value for seed, value in values[scatters].items()}
        interval = only(values).interval
        hits += interval.low <= 0 <= interval.high
    assert least <= hits / trials <= 0.985


def test_two_arms_are_compared_alike_whatever_else_scatters() -> None:
    rng = random.Random(8)
    values = drawn(rng, {"a": 0, "b": 0.2}, 4, spread=0.1)
    alone = only(values)
    values["wild"] = {seed: rng.gauss(0, 50) for seed in range(4)}
    assert only(values).interval == alone.interval


def test_chance_is_not_compared_with_chance() -> None:
    lost = {arm: {0: 0.1, 1: 0.1} for arm in "ab"}
    both = only(lost, diverged=["a", "b"], primary=["b"])
    assert both.verdict == "both diverged: nothing to compare"
    assert (both.p_differs, both.p_equal, both.needs) == (1.0, 1.0, None)
    beside = {"a": {0: 0.1, 1: 0.1}, "b": {0: 0.9, 1: 0.92}}
    assert only(beside, diverged=["a"]).p_differs < 0.05


def test_seeds_that_agree_are_counted_on_where_more_of_them_would_be_paired() -> None:
    """Two arms of three seeds are not paired yet, but five are."""
    values = {"a": {0: 1.0, 1: 5.0, 2: 9.0}, "b": {0: 1.1, 1: 5.0, 2: 9.1}}
    found = only(values)
    assert "pooled over both arms" in found.interval.method and found.needs == 5
    values["b"] = {0: 9.0, 1: 5.1, 2: 1.0}
    assert (only(values).needs or 1000) > 100


def test_fishers_distribution_is_the_tables() -> None:
    table = {(2, 2): 19.0, (5, 5): 5.0503, (2, 10): 4.1028, (10, 3): 8.7855}
    for (one, other), value in table.items():
        assert at_least(value, one, other) == pytest.approx(0.05, abs=1e-5)
    assert at_least(3.0, 2, 4) == pytest.approx((1 + 2 * 3 / 4) ** -2)


def test_verdicts() -> None:
    rng = random.Random(2)
    tight = drawn(rng, {"a": 0, "b": 0.1, "c": 5}, 8, spread=0.1)
    assert only(tight).verdict == "equal within 1"
    (far,) = (d for d in differences(tight, "a", 1.0) if d.arm == "c")
    assert far.verdict.startswith("differs: [+4.") and far.p_differs < 1e-6
    loose = drawn(rng, {"a": 0, "b": 0.1}, 3, spread=3)
    weak = only(loose)
    assert weak.verdict == f"too little power: needs n = {weak.needs}"
    assert weak.needs is not None and weak.needs > 50


def test_what_is_needed_is_enough() -> None:
    """As many runs give the verdict in about 80 % of studies of equal arms, pooled as it says."""
    rng = random.Random(3)
    needs = only(drawn(rng, {"a": 0, "b": 0, "c": 0}, 200, spread=1.3)).needs
    assert needs is not None and 25 < needs < 50
    trials = [drawn(rng, {"a": 0, "b": 0, "c": 0}, needs, spread=1.3) for _ in range(600)]
    power = sum(only(values).verdict.startswith("equal") for values in trials) / 600
    assert 0.68 < power < 0.9


def test_what_is_needed_is_enough_for_verdicts_that_hold_together() -> None:
    """At the level of the first of Holm's, which of eight arms is 5 % / 8."""
    rng, arms = random.Random(6), "abcdefghi"
    means = dict.fromkeys(arms, 0.0)
    needs = only(drawn(rng, means, 200, spread=0.4), primary=arms[1:]).needs
    assert needs is not None
    power = 0.0
    for _ in range(150):
        found = differences(drawn(rng, means, needs, spread=0.4), "a", 1.0, primary=arms[1:])
        power += sum(d.verdict.startswith("equal") for d in found) / 8 / 150
    assert power > 0.8


@pytest.mark.parametrize("primary", ["", "bc"])
def test_more_runs_are_needed_than_told_nothing(primary: str) -> None:
    """Of half the margin: the first n whose interval cannot hold both 0 and the margin, never one
    that is there."""
    rng, weak = random.Random(7), []
    for _ in range(200):
        one = only(drawn(rng, {"a": 0, "b": 0.5, "c": 0}, 10, spread=0.6), primary=primary)
        if one.verdict.startswith("too little power"):
            assert one.needs is not None and one.needs > 10
            weak.append(one)
    assert len(weak) > 20
    values = {"a": {i: 0.55 * (-1) ** i for i in range(10)}}
    values["b"] = {i: 0.5 - value for i, value in values["a"].items()}
    needs, spread = only(values).needs, math.sqrt(2 * variance(values["a"].values()))
    assert needs is not None
    halves = [quantile(0.95, 2 * (n - 1)) * spread / math.sqrt(n) for n in (needs - 1, needs)]
    assert halves[0] > 0.5 >= halves[1]


def test_a_diverged_arm_is_compared_by_itself() -> None:
    """Runs at chance have no deviation: pooled with them, the others would look too sure."""
    rng = random.Random(4)
    values = drawn(rng, {"a": 10, "b": 10.2}, 4)
    known = only(values)
    values["lost"] = dict.fromkeys(range(4), 0.1)
    beside = differences(values, "a", 1.0, diverged=["lost"])
    assert beside[0].interval == known.interval
    assert beside[1].interval.method.startswith("each arm's own deviation, Welch")
    assert beside[1].verdict.startswith("differs: [-1")


def test_primary_verdicts_hold_together() -> None:
    """Of ten arms without a difference, one in 20 is called different by itself; Holm's are all
    right in 95 % of studies."""
    rng, trials, alone, together = random.Random(5), 150, 0, 0
    means = {"a": 0.0, **{f"b{i}": 0.0 for i in range(10)}}
    arms = [arm for arm in means if arm != "a"]
    for _ in range(trials):
        values = drawn(rng, means, 4, spread=3)
        found = differences(values, "a", 0.001)
        alone += any(d.verdict.startswith("differs") for d in found)
        found = differences(values, "a", 0.001, primary=arms)
        together += any(d.verdict.startswith("differs") for d in found)
    assert alone / trials > 0.2
    assert together / trials < 0.09


def test_one_run_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 'b': got 1 run, need two or more"):
        differences({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0}}, "a", 1.0)
