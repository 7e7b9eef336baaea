"""What the recipes' runs say: a table of gaps with verdicts, and accuracy against cost."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.harness.report import Result, difference, failures, finals, shown
from qtrain import Interval

#: of a task's metric: what counts as equal to full precision, in its unit
MARGINS = {"digits": 1.5, "text": 0.05}
#: the sign of a better value, and the axis
BETTER = {"digits": (1, "accuracy in %, digits"), "text": (-1, "loss in nats, text")}
COSTS = {"moved_bytes": "bytes moved / fp32", "energy_pj": "energy of the products / fp32"}


def publish(output: Path) -> None:
    """Print and write the table and draw the figure of the tasks whose results are there."""
    paths = {task: output / f"{task}-here.json" for task in MARGINS}
    results = {
        task: json.loads(path.read_text(encoding="utf-8"))
        for task, path in paths.items()
        if path.exists()
    }
    found = table(results)
    print(found)
    (output / "recipes.md").write_text(found + "\n", encoding="utf-8")
    plot(results, output / "recipes.svg")


def judged(task: str, gap: Interval | None, broken: int) -> str:
    """Of a recipe's gap to full precision, by the task's margin m: equal where the interval lies
    within +-m, worse where it lies beyond -m, else how it is open."""
    m, (sign, _) = MARGINS[task], BETTER[task]
    if broken:
        return f"{broken} diverged"
    if gap is None:
        return "-"
    low, high = sorted((sign * gap.low, sign * gap.high))
    if -m <= low and high <= m:
        return "equal"
    if high < -m:
        return "worse"
    return "worse, by how much is open" if high < 0 else "open"


def table(results: dict[str, Result]) -> str:
    """A row a recipe, as markdown: of each task the mean, the gap with its 95 % interval and the
    verdict; bytes moved and energy beside full precision's."""
    arms = dict.fromkeys(arm for result in results.values() for arm in result["arms"])
    rows = []
    for arm in arms:
        row = [f"`{arm}`"]
        for task, result in results.items():
            values = list(finals(result, arm).values())
            gap = difference(finals(result, arm), finals(result, result["reference"]))
            broken, _ = failures(result, arm)
            mean = f"{statistics.fmean(values):.2f}" if values else "-"
            reference = arm == result["reference"]
            own = [""] * 2 if reference else [shown(gap), judged(task, gap, broken)]
            paid = " / ".join(f"{cost(result, arm, name):.2f}" for name in COSTS)
            row += [mean, *own, paid if values else "-"]
        rows.append(row)
    headers = ["recipe"]
    for task in results:
        headers += [BETTER[task][1], "minus fp32", f"within ±{MARGINS[task]:g}", "bytes / energy"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def cost(result: Result, arm: str, name: str) -> float:
    """Of a step of the recipe, in parts of full precision's; nan where every run broke."""
    runs: list[dict[str, Any]] = result["runs"]
    found = [run["more"][name] for run in runs if run["arm"] == arm and run.get("more")]
    return statistics.fmean(found) if found else float("nan")


def plot(results: dict[str, Result], path: Path) -> None:
    """A panel for each task and cost, in each a number for a recipe: the mean of its seeds, a bar
    from the lowest to the highest; the key to the numbers on the right."""
    arms = list(dict.fromkeys(arm for result in results.values() for arm in result["arms"]))
    figure = Figure(figsize=(12.5, 4.6 * len(results)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(results), len(COSTS) + 1, width_ratios=[1, 1, 0.3])
    for line, (task, result) in enumerate(results.items()):
        for column, (name, label) in enumerate(COSTS.items()):
            axes = figure.add_subplot(grid[line, column])
            _numbers(axes, result, arms, name)
            axes.set_xlabel(label)
            if not column:
                sign, text = BETTER[task]
                axes.set_ylabel(
                    text + (" (higher is better)" if sign > 0 else " (lower is better)")
                )
    key = figure.add_subplot(grid[:, -1])
    key.axis("off")
    lines = "\n".join(f"{number:2d}  {arm}" for number, arm in enumerate(arms, 1))
    key.text(0, 1, lines, va="top", family="monospace", fontsize=8, transform=key.transAxes)
    figure.savefig(path, metadata={"Date": None})


def _numbers(axes: Axes, result: Result, arms: list[str], name: str) -> None:
    margin = MARGINS[result["experiment"]]
    for number, arm in enumerate(arms, 1):
        values = list(finals(result, arm).values())
        if not values:
            continue
        mean, x = statistics.fmean(values), cost(result, arm, name)
        reference = arm == result["reference"]
        if reference:
            axes.axhspan(mean - margin, mean + margin, color="C2", alpha=0.15, lw=0)
        colour = "C1" if reference else "C0"
        axes.plot([x, x], [min(values), max(values)], color=colour, alpha=0.5, linewidth=1)
        axes.plot(x, mean, ".", color=colour, markersize=4)
        axes.annotate(
            str(number), (x, mean), xytext=(3, 2), textcoords="offset points", fontsize=8,
            color=colour,
        )  # fmt: skip
    axes.grid(alpha=0.3)
