"""The plot of effective rates over a run, to a PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reports.plots import COLOURS, DASHES, figure, save, whole_steps
from .rate_row import RateRow


def plot_rates(rows: Sequence[RateRow], path: Path) -> None:
    """Each weight's eta / ||w||^2 against the step: the channels' median, and their quartiles as
    a band, to a PNG or SVG."""
    names = list(dict.fromkeys(row.weight for row in rows))
    drawn = figure(10, max(4.0, 1 + 0.22 * len(names)))
    axes = drawn.subplots()
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
    whole_steps(axes)
    axes.set_ylabel("learning rate / ||w||²")
    axes.set_title("median and quartiles of each weight's channels", fontsize=9)
    axes.grid(alpha=0.3)
    drawn.legend(loc="outside right upper", fontsize=8)
    save(drawn, path)
