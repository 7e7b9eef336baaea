"""A paper's claims against the results: a table in README.md, its verdicts computed.

d is the mean over seeds of one arm's metric minus another's, with its 95 % interval
(paired over seeds, Student's t).  A claim

    below    holds if the interval is below 0, does not hold if it is above 0
    alike    holds if the interval lies within +-m points, does not hold if it lies outside
    fails    holds if all of the arm's runs diverged, does not hold if none did

and "does not show" otherwise: the interval is too wide, or there is none.  An arm whose runs all
diverged is below any that has none such, and alike to none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from experiments.harness.report import Result, difference, failures, finals, shown
from experiments.readme import BEGIN as BEGIN
from experiments.readme import END as END
from experiments.readme import insert

HOLDS, NOT, OPEN = "holds", "does not hold", "does not show"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of two arms of an experiment.

    paper    its numbers, in words
    says     of `arm` against `other`; "fails": of `arm` alone
    within   m, in the metric's unit, for "alike"
    unit     of the metric
    metric   what is compared, a column of the curves; None: the experiment's
    against  that of `other`, where it is another one
    places   decimals that the table shows
    """

    experiment: str
    text: str
    paper: str
    arm: str
    other: str
    says: Literal["below", "alike", "fails"]
    within: float = 0.0
    unit: str = "%"
    metric: str | None = None
    against: str | None = None
    places: int = 2

    def of(self, result: Result) -> tuple[dict[int, float], dict[int, float]]:
        """{seed: value} of the arm and of the other."""
        return (
            finals(result, self.arm, self.metric),
            finals(result, self.other, self.against or self.metric),
        )


def verdict(claim: Claim, result: Result) -> str:
    """By the rule above."""
    broken, count = failures(result, claim.arm)
    if claim.says == "fails":
        return OPEN if count == 0 or 0 < broken < count else HOLDS if broken else NOT
    others, _ = failures(result, claim.other)
    if broken and broken == count and not others:
        return HOLDS if claim.says == "below" else NOT
    interval = difference(*claim.of(result))
    if interval is None or broken or others:
        return OPEN
    low, high, m = interval.low, interval.high, claim.within
    if claim.says == "below":
        return HOLDS if high < 0 else NOT if low > 0 else OPEN
    return HOLDS if -m <= low and high <= m else NOT if low > m or high < -m else OPEN


def row(claim: Claim, result: Result | None) -> list[str]:
    """Claim, paper, ours, rule, verdict."""
    unit = f" {claim.unit}" if claim.unit else ""
    alike = f"within ±{claim.within:g}{unit}"
    rule = {"below": "below", "alike": alike, "fails": "diverges"}[claim.says]
    if result is None:
        return [claim.text, claim.paper, "not run", rule, "-"]
    both = claim.of(result)
    means = [
        f"{statistics.fmean(values.values()):.{claim.places}f}" if values else "-"
        for values in both
    ]
    gap = difference(*both)
    broken, count = failures(result, claim.arm)
    d, n = shown(gap, claim.places), gap.n if gap else 0
    ours = f"{means[0]} against {means[1]}{unit}, d = {d}, n = {n}"
    if claim.says == "fails" or broken:
        ours = f"{broken} of {count} runs diverged; {ours}"
    return [claim.text, claim.paper, ours, rule, verdict(claim, result)]


def table(results: Mapping[str, Result], claims: Sequence[Claim], *, verdicts: bool = True) -> str:
    """As markdown; without rules and verdicts where runs are too small or too few to bear them."""
    columns = 5 if verdicts else 3
    rows = [row(claim, results.get(claim.experiment))[:columns] for claim in claims]
    headers = ["claim", "paper", "ours", "rule", "verdict"][:columns]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def load(claims: Sequence[Claim], folder: Path, scale: str) -> dict[str, Result]:
    """{experiment: its results} of those that are in the folder."""
    names = dict.fromkeys(claim.experiment for claim in claims)
    paths = {name: folder / f"{name}-{scale}.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def publish(
    claims: Sequence[Claim],
    readme: Path,
    text: str,
    arguments: list[str] | None = None,
    *,
    verdicts: bool = True,
) -> None:
    """The command of a paper's claims: print their table, and put it into a README.

    readme   where no other is given; the results are in the folder `results` beside it
    text     the script's docstring
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--scale", choices=("here", "paper"), default="here")
    results = readme.parent / "results"
    parser.add_argument("--output", type=Path, default=results, help="folder of the results")
    parser.add_argument("--readme", type=Path, default=readme)
    args = parser.parse_args(arguments)
    found = table(load(claims, args.output, args.scale), claims, verdicts=verdicts)
    print(found)
    insert(found, args.readme)
