"""Plots of a run: its curves, errors, costs and effective rates; each to a PNG or SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from .. import checks
from ..hardware.row import Trade
from ..inspection.recorder import ROLES
from ..inspection.report import Report
from ..inspection.rows import MonitorRow
from ..products.operations import KINDS
from ..weights.rates import RateRow
from .figures import COLOURS as COLOURS
from .figures import DASHES as DASHES
from .figures import MARKERS, plain
from .figures import figure as _figure
from .figures import save as _save


def plot_curves(epochs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], path: Path) -> None:
    """Loss (training and test) and accuracy of each model against the epoch, to a PNG or SVG."""
    figure = _figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def plot_errors(report: Report, path: Path) -> None:
    """SQNR of every layer in network order, one line per role, to a PNG or SVG."""
    layers = list(dict.fromkeys(row.layer for row in report.rows))
    roles = list(dict.fromkeys(row.role for row in report.rows))
    figure = _figure(max(10.0, 2 + 0.35 * len(layers)), 6)
    axes = figure.subplots()
    for i, role in enumerate(roles):
        # an error of zero has an infinite SQNR, which no axis shows
        rows = [r for r in report.rows if r.role == role and math.isfinite(r.sqnr_db)]
        axes.plot(
            [layers.index(row.layer) for row in rows],
            [row.sqnr_db for row in rows],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=DASHES[i % 2],
            linewidth=1,
            color=COLOURS[i % len(COLOURS)],
            label=role,
        )
    axes.set_xticks(range(len(layers)), [plain(name) for name in layers], rotation=90, fontsize=8)
    axes.set_ylabel("SQNR in dB (higher is better)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)  # it covers no line there
    _save(figure, path)


def plot_trades(trades: Sequence[Trade], path: Path) -> None:
    """SQNR of each product's result against its energy, one mark a layer and product, numbered in
    network order as the legend lists the layers, to a PNG or SVG.

    trades: of `CostReport.against`.
    """
    layers = list(dict.fromkeys(trade.layer for trade in trades))
    figure = _figure(11, max(5.0, 1 + 0.2 * len(layers)))
    axes = figure.subplots()
    for i, product in enumerate(KINDS):
        # an error of zero has an infinite SQNR, which no axis shows
        shown = [t for t in trades if t.product == product and math.isfinite(t.sqnr_db)]
        shown.sort(key=lambda trade: (trade.energy_pj, trade.sqnr_db))
        points = [(trade.energy_pj / 1e6, trade.sqnr_db) for trade in shown]
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            marker=MARKERS[i],
            color=COLOURS[i],
            alpha=0.8,
            label=product,
        )
        above = Counter[float]()  # layers of one size lie above one another
        for trade, (x, y) in zip(shown, points, strict=True):
            number = str(layers.index(trade.layer) + 1)
            place = 6 + 12 * (above[x] % 4), -3
            axes.annotate(number, (x, y), place, textcoords="offset points", fontsize=7)
            above[x] += 1
    axes.margins(x=0.1)
    axes.set_xscale("log")
    axes.set_xlabel("energy of the product's multiply-adds in µJ (lower is better)")
    axes.set_ylabel("SQNR in dB (higher is better)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    names = "\n".join(f"{number} {layer}" for number, layer in enumerate(layers, 1))
    figure.legend([], [], loc="outside right upper", title=names, title_fontsize=8, frameon=False)
    _save(figure, path)


def plot_monitor(
    rows: Sequence[MonitorRow],
    path: Path,
    *,
    layers: Iterable[str] | None = None,
    roles: Iterable[str] | None = None,
) -> None:
    """SQNR against the step, a panel a role and a line a layer, to a PNG or SVG.

    layers, roles   which of those recorded; None: all.  ValueError for others, and without a row
    """
    if not rows:
        raise ValueError("monitor: nothing to plot; no step is recorded")
    chosen_layers = _chosen("layers", layers, [row.layer for row in rows])
    chosen_roles = _chosen("roles", roles, sorted({row.role for row in rows}, key=ROLES.index))
    columns = min(3, len(chosen_roles))
    lines = -(-len(chosen_roles) // columns)
    figure = _figure(2 + 4 * columns, max(3.2 * lines, 1 + 0.2 * len(chosen_layers)))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
    for role, axes in zip(chosen_roles, panels, strict=False):
        for i, layer in enumerate(chosen_layers):
            # an error of zero has an infinite SQNR, which no axis shows
            own = [r for r in rows if (r.layer, r.role) == (layer, role)]
            own = [row for row in own if math.isfinite(row.sqnr_db)]
            axes.plot(
                [row.step for row in own],
                [row.sqnr_db for row in own],
                marker=MARKERS[i // len(COLOURS) % len(MARKERS)],
                markersize=3,
                linewidth=1,
                linestyle=DASHES[i // len(COLOURS) % 2],
                color=COLOURS[i % len(COLOURS)],
                label=plain(layer) if role == chosen_roles[0] else None,
            )
        axes.set_title(role, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    for axes in panels[len(chosen_roles) :]:
        axes.remove()
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("SQNR in dB (higher is better)", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, path)


def _chosen(field: str, asked: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """What was asked for, in the order of what is known; ValueError for what is not."""
    names = list(dict.fromkeys(known))
    wanted = [] if isinstance(asked, str) else names if asked is None else list(asked)
    for name in wanted:
        checks.choice(field, name, names)
    if not wanted:
        raise ValueError(f"{field}: got {asked!r}, need a list of some of {', '.join(names)}")
    return [name for name in names if name in wanted]


def plot_rates(rows: Sequence[RateRow], path: Path) -> None:
    """Each weight's eta / ||w||^2 against the step: the channels' median, and their quartiles as
    a band, to a PNG or SVG."""
    names = list(dict.fromkeys(row.weight for row in rows))
    figure = _figure(10, max(4.0, 1 + 0.22 * len(names)))
    axes = figure.subplots()
    for i, name in enumerate(names):
        # a channel of norm 0 has an infinite rate, which no axis shows
        own = [row for row in rows if row.weight == name and math.isfinite(row.high)]
        steps, colour = [row.step for row in own], COLOURS[i % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "linestyle": DASHES[i // len(COLOURS) % 2]}
        axes.plot(steps, [row.median for row in own], label=name, marker=".", **style)
        axes.fill_between(
            steps, [row.low for row in own], [row.high for row in own], color=colour, alpha=0.15
        )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("learning rate / ||w||²")
    axes.set_title("median and quartiles of each weight's channels", fontsize=9)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, path)


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [math.nan if line[name] is None else line[name] for line in lines]
