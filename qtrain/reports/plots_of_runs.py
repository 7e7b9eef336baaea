"""Plots of two runs side by side; each to a PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .figures import COLOURS, DASHES, figure, plain, save


class Panel(NamedTuple):
    """One series of two runs, (step, value) of A's and B's."""

    title: str
    unit: str
    a: Sequence[tuple[int, float]]
    b: Sequence[tuple[int, float]]


def plot_two(runs: Sequence[str], panels: Sequence[Panel], path: Path) -> None:
    """Panels of two runs, by their names, to a PNG or SVG."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    drawn = figure(1 + 4.3 * columns, 0.7 + 2.8 * lines)
    places: list[Axes] = [*drawn.subplots(lines, columns, squeeze=False).flatten()]
    for panel, axes in zip(panels, places, strict=False):
        _lines(axes, panel.a, panel.b)
        axes.set_title(plain(panel.title), fontsize=8 if "\n" in panel.title else 9)
        axes.set_ylabel(panel.unit, fontsize=9)
    for axes in places[len(panels) :]:
        axes.remove()
    names = [plain(f"{run}: {name}") for run, name in zip("AB", runs, strict=True)]
    drawn.legend(places[0].get_lines()[:2], names, loc="outside upper center", ncols=2, fontsize=8)
    drawn.supxlabel("step", fontsize=9)
    save(drawn, path)


def _lines(axes: Axes, a: Sequence[tuple[int, float]], b: Sequence[tuple[int, float]]) -> None:
    for i, series in enumerate((a, b)):
        own = [(step, value) for step, value in series if math.isfinite(value)]
        axes.plot(
            [step for step, _ in own],
            [value for _, value in own],
            color=COLOURS[i],
            linestyle=DASHES[i],
            linewidth=1,
            marker="." if len(own) < 30 else None,
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(alpha=0.3)
