"""Plots of one run, and of two side by side; each to a PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..reports.plots import COLOURS, DASHES, figure, plain, save, whole_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(epochs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], path: Path) -> None:
    """Loss (training and test) and accuracy of each model against the epoch, to a PNG or SVG."""
    drawn = figure(10, 4)
    loss, accuracy = drawn.subplots(1, 2)
    for i, (key, label) in enumerate(labels.items()):
        lines = [line for line in epochs if line["branch"] == key]
        x = [line["epoch"] for line in lines]
        style: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i % 2]}
        loss.plot(x, _column(lines, "test_loss"), marker="o", label=f"{label}, test", **style)
        loss.plot(x, _column(lines, "train_loss"), alpha=0.5, label=f"{label}, training", **style)
        accuracy.plot(x, _column(lines, "test_accuracy"), marker="o", label=label, **style)
    loss.set_ylabel("cross-entropy")
    accuracy.set_ylabel("test accuracy")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        whole_steps(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(drawn, path)


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [math.nan if line[name] is None else line[name] for line in lines]


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
    whole_steps(axes, most=5)
    axes.grid(alpha=0.3)
