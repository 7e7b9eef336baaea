"""A study as panels: curves with bands, differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from ...reports.plots import Line, Panel
from .differences import Difference
from .outcome import CURVE, StudyRun


def curve_panel(runs: Sequence[StudyRun], arms: Sequence[str], metric: str) -> Panel:
    """The test metric of each arm by epoch: the mean of its runs, and a band from the lowest to the
    highest; at epochs that all of them have, but for those that diverged."""
    column, bands, lines = 1 + CURVE.index(f"test_{metric}"), [], []
    for i, arm in enumerate(arms):
        own = [run for run in runs if run.arm == arm]
        lost = sum(run.state == "diverged" for run in own)
        curves = [
            {point[0]: point[column] for point in run.curve}
            for run in own
            if run.curve and run.state != "diverged"
        ]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [(e, [curve[e] for curve in curves]) for e in epochs]
        points = [(e, values) for e, values in points if all(map(math.isfinite, values))]
        label = f"{arm} ({lost} diverged)" if lost else arm
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


def gap_panel(differences: Sequence[Difference], measured: str, margin: float) -> Panel:
    """Each arm's difference to its baseline with its 95 % interval, over the margin as a band;
    measured: of what, such as "test accuracy"."""
    unit = measured.removeprefix("test ")
    ends = [(-0.5, -margin), (len(differences) - 0.5, -margin)]
    band = Line(label="margin", kind="margin area", points=ends, top=[margin, margin])
    lines = [band]
    for i, one in enumerate(differences):
        x, interval = float(i), one.interval
        bar = [(x, interval.low), (x, interval.high)]
        value = [(x, interval.value)]
        lines.append(Line(label=one.arm, kind="interval", points=bar))
        lines.append(Line(label=one.arm, kind="interval", points=value, marks=True, joined=False))
    return Panel(
        title="Difference to the baseline", text=f"Difference of {measured} to the baseline",
        unit=unit, x="arm", lines=lines, ticks=[one.arm for one in differences],
    )  # fmt: skip
