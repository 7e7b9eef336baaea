"""A study as panels: curves with bands, differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from ...reports.plots import Line, Panel
from .differences import Difference
from .outcome import CURVE, StudyRun

#: an arm is drawn up to so many times as far from 0 as the nearest one, or as twice the margin
_FAR = 8
#: half the width of an interval's bar, where arms are 1 apart
_BAR = 0.12


def curve_panel(runs: Sequence[StudyRun], arms: Sequence[str], metric: str) -> Panel:
    """The test metric of each arm by epoch: the mean of its runs, and a band from the lowest to the
    highest; at epochs that all of them have, but for those that diverged."""
    column, bands, lines = 1 + CURVE.index(f"test_{metric}"), [], []
    for i, arm in enumerate(arms):
        own = [run for run in runs if run.arm == arm]
        curves = [
            {point[0]: point[column] for point in run.curve}
            for run in own
            if run.curve and run.state != "diverged"
        ]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [(e, [curve[e] for curve in curves]) for e in epochs]
        points = [(e, values) for e, values in points if all(map(math.isfinite, values))]
        label = _label(runs, arm)
        kind = f"arm{i % 8}"
        means = [(float(e), fmean(values)) for e, values in points]
        if len(curves) > 1:
            low = [(float(e), min(values)) for e, values in points]
            high = [max(values) for _, values in points]
            bands.append(Line(label=label, kind=f"{kind} area", points=low, top=high))
        lines.append(Line(label=label, kind=kind, points=means, marks=len(means) < 30))
    return Panel(
        title=f"Test {metric}", text=f"Test {metric}: mean, lowest and highest run of each arm",
        unit="cross-entropy" if metric == "loss" else metric, x="epoch", lines=[*lines, *bands],
    )  # fmt: skip


def gap_panel(
    differences: Sequence[Difference],
    measured: str,
    margin: float,
    runs: Sequence[StudyRun],
    arms: Sequence[str],
) -> Panel:
    """Each arm's difference to its baseline as a mark, its 95 % interval as a bar, over the margin
    as a band.  An arm that would flatten all of these, as one at chance does, is at the edge, with
    an arrow and its difference beside its name.

    measured   of what, such as "test accuracy";  arms: all of the study, in order
    """
    reach = {one.arm: max(map(abs, (one.interval.low, one.interval.high))) for one in differences}
    most = _FAR * max(2 * margin, min(reach.values()))
    edge = 1.1 * max(margin, *(own for own in reach.values() if own <= most))
    ends, ticks = [(-0.5, -margin), (len(differences) - 0.5, -margin)], list[str]()
    lines = [Line(label="margin", kind="margin area", points=ends, top=[margin, margin])]
    for i, one in enumerate(differences):
        x, value, ticks = float(i), one.interval.value, [*ticks, one.arm]
        low, high = one.interval.low, one.interval.high
        if reach[one.arm] > most:
            ticks[-1] += f" {'↑' if value > 0 else '↓'} {value:+.3g}"
            value, low, high = (max(-edge, min(edge, end)) for end in (value, low, high))
        label, kind = _label(runs, one.arm), f"arm{arms.index(one.arm) % 8}"
        sides = [(x - _BAR, low), (x + _BAR, low)]
        outline = [*sides, (x + _BAR, high), (x - _BAR, high), (x - _BAR, low)]
        lines.append(Line(label=label, kind=f"{kind} area", points=sides, top=[high, high]))
        lines.append(Line(label=label, kind=kind, points=outline))
        lines.append(Line(label=label, kind=kind, points=[(x, value)], marks=True, joined=False))
    return Panel(
        title="Difference to the baseline", text=f"Difference of {measured} to the baseline",
        unit=measured.removeprefix("test "), x="arm", lines=lines, ticks=ticks,
    )  # fmt: skip


def _label(runs: Sequence[StudyRun], arm: str) -> str:
    """An arm, and how many of its runs diverged."""
    lost = sum(run.arm == arm and run.state == "diverged" for run in runs)
    return f"{arm} ({lost} diverged)" if lost else arm
