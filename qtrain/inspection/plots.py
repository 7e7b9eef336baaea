"""Plots of numeric errors: of a report, and over a run; each to a PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import checks
from ..reports.plots import COLOURS, DASHES, MARKERS, figure, plain, save, whole_steps
from .roles import ROLES
from .row import Row
from .rows import MonitorRow


def plot_errors(rows: Sequence[Row], path: Path) -> None:
    """SQNR of every layer in network order, one line per role, to a PNG or SVG."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    roles = list(dict.fromkeys(row.role for row in rows))
    drawn = figure(max(10.0, 2 + 0.35 * len(layers)), 6)
    axes = drawn.subplots()
    for i, role in enumerate(roles):
        # an error of zero has an infinite SQNR, which no axis shows
        own = [row for row in rows if row.role == role and math.isfinite(row.sqnr_db)]
        axes.plot(
            [layers.index(row.layer) for row in own],
            [row.sqnr_db for row in own],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=DASHES[i % 2],
            linewidth=1,
            color=COLOURS[i % len(COLOURS)],
            label=role,
        )
    axes.set_xticks(range(len(layers)), [plain(name) for name in layers], rotation=90, fontsize=8)
    axes.set_ylabel("SQNR in dB (higher is better)")
    axes.grid(alpha=0.3)
    drawn.legend(loc="outside right upper", fontsize=8)  # it covers no line there
    save(drawn, path)


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
    drawn = figure(2 + 4 * columns, max(3.2 * lines, 1 + 0.2 * len(chosen_layers)))
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True).flatten()
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
        whole_steps(axes, most=5)
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    for axes in panels[len(chosen_roles) :]:
        axes.remove()
    drawn.supxlabel("step", fontsize=10)
    drawn.supylabel("SQNR in dB (higher is better)", fontsize=10)
    drawn.legend(loc="outside right upper", fontsize=8)
    save(drawn, path)


def _chosen(field: str, asked: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """What was asked for, in the order of what is known; ValueError for what is not."""
    names = list(dict.fromkeys(known))
    wanted = [] if isinstance(asked, str) else names if asked is None else list(asked)
    for name in wanted:
        checks.choice(field, name, names)
    if not wanted:
        raise ValueError(f"{field}: got {asked!r}, need a list of some of {', '.join(names)}")
    return [name for name in names if name in wanted]
