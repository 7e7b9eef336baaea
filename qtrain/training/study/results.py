"""What a study found: verdicts, a table, every run; and as files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ...reports.numbers import count
from ...reports.plots import Panel, plot
from ...reports.table import Table, wrapped
from .declared import Declaration
from .differences import Difference, differences
from .outcome import StudyRun, save_runs, table_of
from .panels import curve_panel, gap_panel
from .plan import METRICS, Plan
from .tuning import Tuned

if TYPE_CHECKING:
    from ...reports.plots import Axes, Figure, Place


def _signed(value: float) -> str:
    """With as many digits as tell on which side of 0 it is."""
    text = f"{value:+.4f}"
    return text if float(text) or not value else f"{value:+.1e}"


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """Print it for verdicts and table; `plot`, `save` and `frame` give it in other forms.

    runs       every run of the plan, whatever became of it
    declared   how it is judged, each time that was stated: see `Declaration`
    tuned      the learning rates that were chosen, where they were
    """

    plan: Plan
    runs: tuple[StudyRun, ...]
    declared: tuple[Declaration, ...]
    tuned: Tuned | None = None

    def values(self, arm: str) -> dict[int, float]:
        """Seed -> the metric, of the runs that ended; of diverged ones that of chance, where chance
        has one."""
        ended = [run for run in self.runs if run.arm == arm and run.has_ended]
        values = {run.seed: run.value(self.plan.metric) for run in ended}
        own = self.plan.metric not in METRICS
        return {s: v for s, v in values.items() if not (own and math.isnan(v))}

    @property
    def failed(self) -> list[StudyRun]:
        """The runs that an error ended in this call; a run that diverged or that the budget left is
        none."""
        return [run for run in self.runs if run.note and not run.has_ended]

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Of each arm to its baseline, where both have two runs that ended."""
        found: list[Difference] = []
        diverged = [run.arm for run in self.runs if run.state == "diverged"]
        for baseline, arms, primary in self.plan.rivals().values():
            known = {arm: own for arm in arms if len(own := self.values(arm)) > 1}
            if baseline in known:
                found += differences(
                    known, baseline, self.plan.margin, diverged=diverged,
                    primary=[arm for arm in primary if arm in known],
                )  # fmt: skip
        return tuple(found)

    @property
    def verdicts(self) -> dict[str, str]:
        """Arm -> the verdict in words, which way it differs among them; baselines have none."""
        found = {one.arm: self._told(one) for one in self.differences}
        baselines = {baseline for baseline, _, _ in self.plan.rivals().values()}
        few = "too few runs: a comparison needs two of each"
        return {a.name: found.get(a.name, few) for a in self.plan.arms if a.name not in baselines}

    def _told(self, one: Difference) -> str:
        way = {"accuracy": 1, "loss": -1}.get(self.plan.metric)
        better = "better" if one.interval.value * (way or 0) > 0 else "worse"
        return one.verdict.replace("differs", f"differs, {better}", 1 if way else 0)

    @property
    def exploratory(self) -> set[str]:
        """The arms whose verdicts are no part of what holds together at 95 %."""
        return {arm.name for arm in self.plan.arms if arm.recipe not in self.plan.primary}

    def table(self) -> Table:
        """A line an arm: the metric's mean and deviation, how many runs ended, the difference."""
        gaps = {one.arm: one for one in self.differences}
        lines = []
        for arm in self.plan.arms:
            values, gap = list(self.values(arm.name).values()), gaps.get(arm.name)
            diverged = sum(r.arm == arm.name and r.state == "diverged" for r in self.runs)
            ended = f"{len(values)}" + (f", {diverged} diverged" if diverged else "")
            mean = f"{fmean(values):.4f}" if values else "-"
            deviation = f"{stdev(values):.4f}" if len(values) > 1 else "-"
            interval = gap and f"[{_signed(gap.interval.low)}, {_signed(gap.interval.high)}]"
            difference = _signed(gap.interval.value) if gap else ""
            lines.append([arm.name, mean, deviation, ended, difference, interval or ""])
        headers = ["arm", self.plan.metric, "sd", "runs", "difference", "95 % interval"]
        caption = f"{self.plan.metric} of each arm, and its difference to {self.plan.baseline}"
        return Table(caption=caption, headers=headers, lines=lines)

    def title(self) -> str:
        """What was compared, in a line."""
        plan, epochs = self.plan, {arm.config.epochs for arm in self.plan.arms}
        after = count(epochs.pop(), "epoch") if len(epochs) == 1 else "the last epoch"
        what = f"{count(len(plan.arms), 'arm')} x {count(len(plan.seeds), 'seed')}"
        return (
            f"{plan.name}: {what}, {plan.measured} "
            f"after {after}, against {plan.baseline}, margin {plan.margin:g}"
        )

    def notes(self) -> list[str]:
        """What to know of the table: how it was computed, when judged, and what went otherwise."""
        found = []
        methods = dict.fromkeys(one.interval.method for one in self.differences)
        if methods:
            primary = ", ".join(self.plan.primary) or "no arm"
            each = ", of each model by itself" if len(self.plan.rivals()) > 1 else ""
            found.append(
                f"Intervals: 95 % each, over seeds ({'; '.join(methods)}); the test samples are "
                f"the same for all. Verdicts of {primary} hold together at 95 % (Holm){each}; "
                f"others are exploratory."
            )
        if self.tuned is not None:
            found.append(self.tuned.note)
        if len(self.declared) > 1:
            stated = "; ".join(
                f"after {count(d.after, 'run')}: {d.metric}, margin {d.margin:g}, against "
                f"{d.baseline}, primary {', '.join(d.primary) or 'none'}"
                for d in self.declared
            )
            found.append(f"How it is judged was changed: {stated}.")
        elif self.declared and self.declared[0].after:
            found.append(
                f"How it is judged was stated after {count(self.declared[0].after, 'run')}."
            )
        for run in self.runs:
            if run.state == "diverged":
                counts = f"counts as chance, {run.value(self.plan.metric):.4g}"
                if self.plan.metric not in METRICS:
                    counts = f"is left out, as chance has no {self.plan.metric}"
                found.append(f"{run.arm}, seed {run.seed}, {counts}: {run.note}")
            elif run.state in ("unfinished", "failed"):
                ended = f"ended with {count(run.epochs, 'epoch')}"
                what = ended if run.state == "unfinished" else "failed"
                found.append(f"{run.arm}, seed {run.seed}, {what}: {run.note}")
        missing = sum(not run.has_ended for run in self.runs)
        if missing:
            found.append(
                f"{missing} of {len(self.runs)} runs have not ended: the same call goes on."
            )
        machines = dict.fromkeys(run.machine for run in self.runs if run.machine)
        if len(machines) > 1:
            found.append(f"Runs of {len(machines)} machines: {'; '.join(machines)}.")
        return found

    def __str__(self) -> str:
        mark = dict.fromkeys(self.exploratory, " (exploratory)")
        verdicts = [f"{arm}{mark.get(arm, '')}: {own}" for arm, own in self.verdicts.items()]
        parts = ["\n".join(wrapped(self.title())), "\n".join(verdicts), self.table().text()]
        parts += ["\n".join(wrapped(note)) for note in self.notes()]
        return "\n\n".join(parts)

    def panels(self) -> list[Panel]:
        """The test metric by epoch, and the differences with their intervals."""
        plan = self.plan
        arms, found = [arm.name for arm in plan.arms], self.differences
        gaps = [gap_panel(found, plan.measured, plan.margin, self.runs, arms)] if found else []
        shown = plan.metric if plan.metric in METRICS else METRICS[0]
        return [curve_panel(self.runs, arms, shown), *gaps]

    def plot(self, path: Place = None, *, ax: Axes | None = None) -> Figure:
        """The curves with bands from the lowest run to the highest, and the differences; to a .png
        or .svg where a path is given; the curves alone into `ax` where one is."""
        panels = self.panels()
        return plot(panels if ax is None else panels[:1], path, ax=ax)

    def rows(self) -> list[dict[str, Any]]:
        """Every run as plain data."""
        return table_of(self.runs)

    def frame(self) -> Any:
        """Every run as a pandas.DataFrame; ImportError where pandas is not installed."""
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(self.rows())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write every run to a .csv, or with its curve to a .json, atomically; ValueError for
        another ending."""
        return save_runs(self.runs, path)
