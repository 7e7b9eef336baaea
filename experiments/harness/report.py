"""What an experiment's results say: each arm against the reference, as a table and a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate

from qtrain import Interval, mean_difference

Result = Mapping[str, Any]


def finals(result: Result, arm: str, metric: str | None = None) -> dict[int, float]:
    """{seed: the metric after the last epoch} of the arm's runs that did not fail; None: the
    experiment's metric."""
    return {
        run["seed"]: run["epochs"][metric or result["metric"]][-1]
        for run in result["runs"]
        if run["arm"] == arm and run["failed"] is None
    }


def failures(result: Result, arm: str) -> tuple[int, int]:
    """How many of the arm's runs failed, of how many."""
    own = [run for run in result["runs"] if run["arm"] == arm]
    return sum(run["failed"] is not None for run in own), len(own)


def difference(one: Mapping[int, float], two: Mapping[int, float]) -> Interval | None:
    """`one` minus `two`, both {seed: value}, over the seeds of both; None for less than two."""
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) < 2:
        return None
    return mean_difference([two[seed] for seed in seeds], [one[seed] for seed in seeds])


def shown(interval: Interval | None, places: int = 2) -> str:
    """Such as "-1.20 [-1.93, -0.47]"."""
    if interval is None:
        return "-"
    value, low, high = (f"{x:+.{places}f}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def table(result: Result) -> str:
    """A row an arm: mean, standard deviation, n, difference to the reference, the paper's."""
    rows = []
    for arm, text in result["arms"].items():
        values = list(finals(result, arm).values())
        failed, count = failures(result, arm)
        is_reference = arm == result["reference"]
        other = finals(result, result["reference"])
        gap = "" if is_reference else shown(difference(finals(result, arm), other))
        rows.append(
            [
                arm,
                text,
                f"{statistics.fmean(values):.2f}" if values else "-",
                f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-",
                f"{len(values)}" if not failed else f"{count - failed} ({failed} failed)",
                gap,
                result["paper"].get(arm, "-"),
            ]
        )
    headers = [
        "arm", "", result["metric"], "std", "n",
        f"minus {result['reference']}, 95 % interval", f"paper: {result['published']}",
    ]  # fmt: skip
    return tabulate(rows, headers, disable_numparse=True)


def plot(
    result: Result,
    path: Path,
    *,
    beside: str | None = None,
    label: str = "",
    scale: Literal["log", "linear"] = "log",
) -> None:
    """The metric against the epoch, a line an arm (mean of its seeds, each of them faint), to SVG.

    beside   a column of the curves to draw in a second panel, on an axis of that label and scale
    """
    figure = Figure(figsize=(6.5 if beside is None else 11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 1 if beside is None else 2, squeeze=False)[0]
    _lines(panels[0], result, result["metric"])
    panels[0].set_ylabel(f"{result['metric']}, mean of the seeds")
    panels[0].legend(fontsize=8)
    if beside is not None:
        _lines(panels[1], result, beside)
        panels[1].set_yscale(scale)
        panels[1].set_ylabel(label)
    figure.savefig(path, metadata={"Date": None})


def _lines(axes: Axes, result: Result, column: str) -> None:
    for i, arm in enumerate(result["arms"]):
        colour, dashes = f"C{i}", ("-", "--")[i % 2]
        runs = [run["epochs"] for run in result["runs"] if run["arm"] == arm]
        curves = [_points(run, column) for run in runs if column in run]
        for curve in curves:
            axes.plot(*zip(*curve.items(), strict=True), color=colour, alpha=0.25, linewidth=0.8)
        whole = [curve for curve in curves if len(curve) == max(map(len, curves))]
        mean = {x: statistics.fmean(curve[x] for curve in whole) for x in (whole or [{}])[0]}
        values = list(finals(result, arm).values())
        text = f"{arm} ({statistics.fmean(values):.2f})" if values else f"{arm} (failed)"
        line = {"color": colour, "linestyle": dashes, "marker": "o", "markersize": 2.5}
        axes.plot(list(mean), list(mean.values()), label=text, **line)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _points(epochs: Mapping[str, Sequence[float | None]], column: str) -> dict[float, float]:
    """{epoch: value} where the column has one."""
    pairs = zip(epochs["epoch"], epochs[column], strict=True)
    return {x: y for x, y in pairs if x is not None and y is not None and math.isfinite(y)}


def plot_arms(result: Result, path: Path) -> None:
    """The metric of every run, a row an arm, its seeds as dots and their mean as a bar, to SVG."""
    arms = list(result["arms"])
    figure = Figure(figsize=(6.5, 0.8 + 0.33 * len(arms)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, arm in enumerate(arms):
        values = list(finals(result, arm).values())
        colour = "C1" if arm == result["reference"] else "C0"
        axes.scatter(values, [y] * len(values), s=14, color=colour, alpha=0.6)
        if values:
            axes.plot(statistics.fmean(values), y, "|", color=colour, markersize=14, mew=2)
    axes.set_yticks(range(len(arms)), arms, fontsize=9)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{result['metric']}, of each seed and their mean")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def publish(result: Result, output: Path, **panels: Any) -> None:
    """Print the table, and draw results/<name>-<scale>.svg; panels: as in `plot`."""
    print(table(result))
    plot(result, output / f"{result['experiment']}-{result['scale']}.svg", **panels)
