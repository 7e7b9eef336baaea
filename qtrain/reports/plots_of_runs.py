"""Plots of two runs side by side; each to a PNG or SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import checks
from ..training.run_series import Series
from .figures import COLOURS, DASHES, figure, plain, save

if TYPE_CHECKING:
    from ..training.compare import Comparison


def plot_comparison(found: Comparison, path: Path, *, rows: int) -> None:
    """The losses of each branch of both runs, the monitored SQNRs of the `rows` layers and roles
    that differ most, and a line where they part, to a PNG or SVG."""
    checks.integer("rows", rows, low=1)
    pairs = [pair for pair in found.errors if not math.isnan(pair.difference)][:rows]
    branches = list(found.losses)
    count = len(branches) + len(pairs)
    if count == 0:
        raise ValueError("plot: the two runs have no branch and no monitored layer in common")
    columns = min(3, count)
    lines = -(-count // columns)
    drawn = figure(1 + 4.3 * columns, 0.7 + 2.8 * lines)
    panels: list[Axes] = [*drawn.subplots(lines, columns, squeeze=False).flatten()]
    for branch, axes in zip(branches, panels, strict=False):
        _lines(axes, found.a.losses[branch], found.b.losses[branch], found.losses[branch].parts)
        axes.set_title(f"training loss, {branch}", fontsize=9)
        axes.set_ylabel("loss", fontsize=9)
    for pair, axes in zip(pairs, panels[len(branches) :], strict=False):
        key = pair.layer, pair.role
        _lines(axes, found.a.errors[key], found.b.errors[key], pair.parts)
        axes.set_title(plain(f"{pair.layer}\n{pair.role}"), fontsize=8)
        axes.set_ylabel("SQNR in dB", fontsize=9)
    for axes in panels[count:]:
        axes.remove()
    names = [plain(f"A: {found.a.name}"), plain(f"B: {found.b.name}")]
    drawn.legend(panels[0].get_lines()[:2], names, loc="outside upper center", ncols=2, fontsize=8)
    drawn.supxlabel("step (dotted: where the runs part)", fontsize=9)
    save(drawn, path)


def _lines(axes: Axes, a: Series, b: Series, parts: int | None) -> None:
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
    if parts is not None:
        axes.axvline(parts, color="#000000", linestyle=":", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(alpha=0.3)
