"""The curves of the blind faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.microscope.exact import interval
from experiments.microscope.judged import COSTS, JUDGES, SIZES, Draw, alone, groups, sized
from qtrain.reports.plots import Line, Panel, plot


def figure(draws: Sequence[Draw], path: Path) -> None:
    def curve(
        bins: Sequence[Sequence[Draw]],
        places: Sequence[float],
        hit: Callable[[Draw], bool],
        name: str,
    ) -> list[Line]:
        kept = [(x, own) for x, own in zip(places, bins, strict=True) if own]
        counts = [(x, sum(map(hit, own)), len(own)) for x, own in kept]
        ends = [interval(k, n) for _, k, n in counts]
        points = [(x, k / n) for x, k, n in counts]
        area = [(x, low) for (x, _, _), (low, _) in zip(counts, ends, strict=True)]
        return [
            Line(label=name, points=points, marks=True),
            Line(label=name, points=area, top=[high for _, high in ends]),
        ]

    costs = [[d for d in draws if low <= d["lost"] < high] for low, high in COSTS]
    middles = [3e-5, *(math.sqrt(low * high) for low, high in COSTS[1:-1]), 0.4]
    panels = [
        Panel(title="first, all draws", unit="share", x="cosine of the gradient lost", log="x",
              lines=[line for j in JUDGES for line in
                     curve(costs, middles, lambda d, j=j: d["first"][j], j)]),
        Panel(title="a planted tensor found, all draws", unit="share", log="x",
              x="cosine of the gradient lost",
              lines=[line for j in JUDGES for line in
                     curve(costs, middles, lambda d, j=j: any(d["found"][j]), j)]),
    ]  # fmt: skip
    lines = []
    for name, kinds in groups().items():
        bins = [sized(alone(draws, kinds), low, high) for low, high in SIZES]
        places = [(low + high) / 2 for low, high in SIZES]
        lines += curve(bins, places, lambda d: d["found"]["diagnose"][0], f"diagnose, {name} kinds")
    panels.append(Panel(title="found, draws of one fault", unit="share",
                        x="size, decades above the smallest", lines=lines))  # fmt: skip
    plot(panels, path)
