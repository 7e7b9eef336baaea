"""The tables as a picture: step time over full precision's, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from parts import PARTS

HEADROOM = 1.0  # inches for a table's title and axis


def plot(tables: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
    """An SVG with two panels a table: ratios with quartiles, milliseconds by part (eager)."""
    rows = [[r for r in table["rows"] if r["status"] == "ok"] for table in tables]
    heights = [HEADROOM + 0.25 * len(r) for r in rows]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no pyplot state
    grid = figure.subplots(len(tables), 2, squeeze=False, height_ratios=heights, sharey="row")
    for (left, right), table, own in zip(grid, tables, rows, strict=True):
        _ratios(left, own)
        _parts(right, own)
        left.set_title(f"{table['network']}, batch {table['batch']}", loc="left", fontsize=10)
    figure.savefig(file, format="svg", metadata={"Date": None})


def _ratios(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """One bar a row, its quartiles as whiskers; the line is full precision."""
    y = range(len(rows))
    median = [row["ratio"].median for row in rows]
    whiskers = [
        [row["ratio"].median - row["ratio"].low for row in rows],
        [row["ratio"].high - row["ratio"].median for row in rows],
    ]
    colours = ["C0" if row["mode"] == "eager" else "C1" for row in rows]
    axes.barh(y, median, xerr=whiskers, color=colours, height=0.7, error_kw={"linewidth": 1})
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    names = [f"{row['method']}, {row['mode']}, {row['layout']}" for row in rows]
    axes.set_yticks(y, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("step time / eager fp32's (medians and quartiles of the rounds)", fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _parts(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Stacked milliseconds of the profiled step."""
    left = [0.0] * len(rows)
    for i, part in enumerate(PARTS, 2):
        width = [1000 * row["parts"]["seconds"][part] if "parts" in row else 0.0 for row in rows]
        axes.barh(range(len(rows)), width, left=left, color=f"C{i}", height=0.7, label=part)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_xlabel("ms of a profiled step, eager", fontsize=8)
    # above the axes, where it covers no bar
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=len(PARTS), fontsize=8, frameon=False
    )
    axes.grid(axis="x", alpha=0.3)
