"""Two runs' losses, accuracies and errors, each beside the other's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .metrics import STEP_NUMBERS, number
from .record import RunRecord

#: Where an SQNR is cut, in dB: that of no error is infinite.
LIMIT_DB = 200.0

#: (step, value) in the order of steps.
Series = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How the losses of one branch compare.

    steps     how many steps both logged
    differs   the first of them at which loss or gradient norm differ in a bit; None: at none
    """

    steps: int
    differs: int | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The test accuracies of one branch after the last epoch that both runs finished.

    gap      b - a
    margin   half of its 95 % interval, as of two independent tests; None where the number of test
             samples is not recorded.  Both runs take the same test, so the true one is narrower
    """

    epoch: int
    a: float
    b: float
    gap: float
    margin: float | None


@dataclass(frozen=True, kw_only=True)
class ErrorPair:
    """The monitored SQNR of one layer and role in both runs, in dB.

    a, b         medians over the records; NaN where a run has none.  An infinite one (no error) is
                 cut at 200, one that is not finite counts as -200
    difference   b - a
    records      how many records are in a and in b
    """

    layer: str
    role: str
    a: float
    b: float
    difference: float
    records: tuple[int, int]


def losses(one: RunRecord, two: RunRecord) -> dict[str, Losses]:
    """Of each branch that both trained."""
    runs = [_by_branch(run.steps, "step") for run in (one, two)]
    found = {}
    for branch in (branch for branch in runs[0] if branch in runs[1]):
        a, b = (run[branch] for run in runs)
        steps = [step for step in a if step in b]
        apart = (s for s in steps if any(a[s][name] != b[s][name] for name in STEP_NUMBERS))
        found[branch] = Losses(steps=len(steps), differs=next(apart, None))
    return found


def _by_branch(
    lines: Sequence[Mapping[str, Any]], count: str
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Branch -> step or epoch, as `count` says -> line."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["branch"], {})[line[count]] = line
    return found


def accuracies(one: RunRecord, two: RunRecord) -> dict[str, Accuracy]:
    """Of each branch of which both finished an epoch; of two runs that take the same test."""
    runs = [_by_branch(run.epochs, "epoch") for run in (one, two)]
    counts = [run.gap.n for run in (one, two) if run.gap is not None and run.gap.n > 0]
    found = {}
    for branch in runs[0]:
        a, b = (
            {epoch: line["test_accuracy"] for epoch, line in run.get(branch, {}).items()}
            for run in runs
        )
        common = [e for e in a if a[e] is not None and b.get(e) is not None]
        if common:
            last = max(common)
            variance = sum(p * (1 - p) for p in (a[last], b[last]))
            margin = 1.96 * math.sqrt(variance / counts[0]) if counts else None
            found[branch] = Accuracy(
                epoch=last, a=a[last], b=b[last], gap=b[last] - a[last], margin=margin
            )
    return found


def errors(one: RunRecord, two: RunRecord) -> tuple[ErrorPair, ...]:
    """Of each layer and role that either monitored, the largest difference first; what one run
    alone has comes last."""
    runs = [sqnrs(run) for run in (one, two)]
    pairs = []
    for layer, role in dict.fromkeys(key for run in runs for key in run):
        series = [run.get((layer, role), []) for run in runs]
        a, b = (median(_cut(v) for _, v in own) if own else math.nan for own in series)
        pairs.append(
            ErrorPair(
                layer=layer,
                role=role,
                a=a,
                b=b,
                difference=b - a,
                records=(len(series[0]), len(series[1])),
            )
        )
    return tuple(
        sorted(pairs, key=lambda p: math.inf if math.isnan(p.difference) else -abs(p.difference))
    )


def loss_curve(run: RunRecord, branch: str) -> Series:
    """The training losses of the logged steps, NaN where one was not finite."""
    return [(line["step"], number(line["loss"])) for line in run.steps if line["branch"] == branch]


def sqnrs(run: RunRecord) -> dict[tuple[str, str], Series]:
    """(layer, role) -> the SQNR in dB of the monitored steps."""
    found: dict[tuple[str, str], Series] = {}
    for row in run.monitor:
        found.setdefault((row.layer, row.role), []).append((row.step, row.sqnr_db))
    return found


def _cut(sqnr_db: float) -> float:
    """An SQNR within +-LIMIT_DB; a NaN, where something was not finite, counts as the worst."""
    return -LIMIT_DB if math.isnan(sqnr_db) else min(max(sqnr_db, -LIMIT_DB), LIMIT_DB)
