"""Plots of two runs side by side; each to a PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from . import checks
from .figures import COLOURS, DASHES, figure, plain, save
from .histograms import LOWEST, VALUE_BINS
from .run_series import Series

if TYPE_CHECKING:
    from .comparison import Comparison
    from .lockstep_rows import Lockstep


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


def plot_lockstep(found: Lockstep, path: Path) -> None:
    """Losses of all runs; deviation and band of the first parting's tensor, or of the one nearest
    to its band; and that parting's histograms, to a PNG or SVG."""
    row = found.nearest() if found.first is None else found.first.row
    drawn = figure(13 if found.first else 9, 4)
    panels: list[Axes] = [*drawn.subplots(1, 3 if found.first else 2, squeeze=False).flatten()]
    steps = range(found.steps)
    for i, name in enumerate(("reference", "quantized")):
        panels[0].plot(steps, found.losses[name], color=COLOURS[i], ls=DASHES[i], label=name)
    for name, own in found.losses.items():
        if name.startswith("band"):
            label = "repeated runs" if name == "band 1" else None
            panels[0].plot(steps, own, color=COLOURS[7], lw=0.8, zorder=1, label=label)
    panels[0].set_title("loss", fontsize=9)
    panels[0].set_ylabel("loss", fontsize=9)
    if row is not None:
        series = found.series(row.layer, row.role, row.call)
        own_steps = [one.step for one in series]
        panels[1].plot(own_steps, [one.band for one in series], color=COLOURS[7], label="band")
        panels[1].plot(
            own_steps, [one.deviation for one in series], COLOURS[1], ls="--", label="quantized"
        )
        panels[1].set_yscale("log")
        panels[1].set_title(plain(f"{row.layer}\n{row.role}"), fontsize=8)
        panels[1].set_ylabel("|difference from reference| / |reference|", fontsize=9)
    for axes in panels[:2]:
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if found.first is not None:
            axes.axvline(found.first.row.step, color="#000000", linestyle=":", linewidth=1)
    if found.first is not None:
        _histograms(panels[2], found.first.values)
        panels[2].set_title(f"values at step {found.first.row.step}", fontsize=9)
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    save(drawn, path)


def _histograms(axes: Axes, values: Mapping[str, tuple[int, ...]]) -> None:
    """Fractions of the elements by sign and binade, the bins that hold any."""
    filled = [i for i in range(VALUE_BINS) if any(counts[i] for counts in values.values())]
    low, high = min(filled, default=0), max(filled, default=VALUE_BINS - 1)
    shown = range(low, high + 1)
    for i, (name, counts) in enumerate(values.items()):
        total = max(sum(counts), 1)
        axes.step(
            shown, [counts[at] / total for at in shown], where="mid", color=COLOURS[i], label=name,
            linestyle=(*DASHES, ":")[i],
        )  # fmt: skip
    middle = VALUE_BINS // 2
    marks = [at for at in shown if at == middle or (at - middle) % 4 == 0]
    axes.set_xticks(marks, [_bin(at - middle) for at in marks], fontsize=7, rotation=90)
    axes.set_ylabel("fraction of elements", fontsize=9)


def _bin(place: int) -> str:
    if place == 0:
        return "0"
    return f"{'-' if place < 0 else ''}2^{LOWEST + abs(place) - 1}"
