"""The table of claims: from the runs that are kept, into README.md.

python -m experiments.confirm.table
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from experiments.confirm.claims import CLAIMS, PRIMARY, UNDECIDABLE, Claim
from experiments.confirm.results import FOLDER, stored
from experiments.readme import insert
from qtrain import Difference, StudyRun, differences

README = Path(__file__).parent / "README.md"
HEADERS = (
    "", "claim", "paper", "its scale and source", "ours", "d, 95 % interval", "margin", "verdict",
)  # fmt: skip


def comparisons(folder: Path = FOLDER) -> dict[str, Difference]:
    """Of each claim of which both arms have two runs that ended: its difference, judged, a primary
    one by Holm's correction over all primary ones of these."""
    found: dict[str, Difference] = {}
    for claim in CLAIMS:
        values, diverged = _values(stored(claim.study, folder), claim.metric)
        if all(len(values.get(arm, ())) > 1 for arm in (claim.arm, claim.other)):
            known = {arm: own for arm, own in values.items() if len(own) > 1}
            every = differences.differences(known, claim.other, claim.margin, diverged=diverged)
            found[claim.name] = next(one for one in every if one.arm == claim.arm)
    levels = differences.holm({name: found[name] for name in PRIMARY if name in found})
    return {name: differences.judged(one, levels.get(name, 0.05)) for name, one in found.items()}


def _values(runs: Sequence[StudyRun], metric: str) -> tuple[dict[str, dict[int, float]], list[str]]:
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        if math.isfinite(value := run.value(metric)):
            values.setdefault(run.arm, {})[run.seed] = value
    return values, [run.arm for run in runs if run.state == "diverged"]


def means(claim: Claim, folder: Path = FOLDER) -> tuple[float, float]:
    """Of a claim's two arms, an accuracy in percent."""
    values, _ = _values(stored(claim.study, folder), claim.metric)
    times = 100 if claim.metric == "accuracy" else 1
    own, other = (times * fmean(values[arm].values()) for arm in (claim.arm, claim.other))
    return own, other


def verdict(claim: Claim, one: Difference) -> str:
    """What the difference says of the claim."""
    if one.verdict.startswith("equal"):
        return f"{one.verdict}: {'as claimed' if claim.says == 'equal' else 'contradicts'}"
    if one.verdict.startswith("differs"):
        lower = one.interval.value < 0
        if claim.says == "below":
            return "same direction" if lower else "contradicts"
        outside = min(abs(one.interval.low), abs(one.interval.high)) > claim.margin
        way = "lower" if lower else "higher"
        return f"differs, {way}: " + ("contradicts" if outside else "by less than the margin shows")
    return one.verdict


def rows(found: Mapping[str, Difference], folder: Path = FOLDER) -> list[list[str]]:
    """A line a claim."""
    lines = []
    for claim in CLAIMS:
        start = [
            claim.name,
            claim.text + (" (primary)" if claim.name in PRIMARY else ""),
            claim.paper,
            claim.source,
        ]
        one = found.get(claim.name)
        times, unit = (100, " %") if claim.metric == "accuracy" else (1, "")
        if one is None:
            lines.append([*start, "not run yet", "", f"{times * claim.margin:g}", "-"])
            continue
        own, other = means(claim, folder)
        low, high, d = (
            times * x for x in (one.interval.low, one.interval.high, one.interval.value)
        )
        ours = f"{own:.2f} against {other:.2f}{unit}, n = {one.interval.n}"
        gap = f"{d:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append([*start, ours, gap, f"{times * claim.margin:g}", verdict(claim, one)])
    return lines


def text(folder: Path = FOLDER) -> str:
    """The table as markdown, and on which machines its runs were."""
    lines = rows(comparisons(folder), folder)
    parts = [tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True)]
    studies = dict.fromkeys(claim.study for claim in CLAIMS)
    machines = {
        name: list(dict.fromkeys(run.machine for run in stored(name, folder))) for name in studies
    }
    parts += [f"{name}: runs on {'; '.join(own)}." for name, own in machines.items() if own]
    return "\n\n".join([*parts, UNDECIDABLE])


def publish() -> None:
    """Print the table and put it into README.md."""
    found = text()
    print(found)
    insert(found, README)


if __name__ == "__main__":
    publish()
