"""The plot of energies beside errors, to a PNG or SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..products.operations import KINDS
from ..reports.plots import COLOURS, MARKERS, figure, save
from .row import Trade


def plot_trades(trades: Sequence[Trade], path: Path) -> None:
    """SQNR of each product's result against its energy, one mark a layer and product, numbered in
    network order as the legend lists the layers, to a PNG or SVG.

    trades: of `CostReport.against`.
    """
    layers = list(dict.fromkeys(trade.layer for trade in trades))
    drawn = figure(11, max(5.0, 1 + 0.2 * len(layers)))
    axes = drawn.subplots()
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
    drawn.legend([], [], loc="outside right upper", title=names, title_fontsize=8, frameon=False)
    save(drawn, path)
