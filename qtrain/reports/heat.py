"""Heat maps of SQNRs: a line a layer, a column a step, coloured by level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from .plots import Place, placed, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Each colour's lowest SQNR in dB, the best first: a bit is worth some 6 dB.
LEVELS = (40.0, 30.0, 20.0, 15.0, 10.0, 5.0, -math.inf)
#: Their colours, as in report.css, and that of NaN.
COLOURS = {
    "h0": "#eef2f6", "h1": "#fff4d1", "h2": "#fee0a0", "h3": "#fcbf66", "h4": "#f08f3c",
    "h5": "#b94a16", "h6": "#7a2503", "nan": "#000000",
}  # fmt: skip
#: The most lines with a name beside each.
NAMED = 80


def level(sqnr_db: float) -> str:
    """The class of a cell: h0 (best) to h6, or nan."""
    if math.isnan(sqnr_db):
        return "nan"
    return f"h{next(i for i, low in enumerate(LEVELS) if sqnr_db >= low)}"


def level_names() -> dict[str, str]:
    """Class -> what it stands for, in dB."""
    names = [f"{low:g} to {high:g}" for high, low in pairwise(LEVELS[:-1])]
    names = [f"{LEVELS[0]:g} and more", *names, f"below {LEVELS[-2]:g}"]
    return {**{f"h{i}": name for i, name in enumerate(names)}, "nan": "NaN"}


@dataclass(frozen=True, kw_only=True)
class Heat:
    """SQNRs of one role.

    title    the role;  steps: of the columns, ascending;  layers: of the lines, the first on top
    values   layer -> its SQNR in dB at each step; None where it has none yet
    """

    title: str
    steps: Sequence[int]
    layers: Sequence[str]
    values: Mapping[str, Sequence[float | None]]

    def paths(self) -> dict[str, str]:
        """Class -> an SVG path of its cells, each 1 x 1."""
        found: dict[str, str] = {}
        for y, layer in enumerate(self.layers):
            cells = enumerate(self.values.get(layer, ()))
            for kind, run in groupby(cells, lambda cell: cell[1] is not None and level(cell[1])):
                (x, _), *rest = run
                if kind:
                    width = 1 + len(rest)
                    found[kind] = f"{found.get(kind, '')}M{x} {y}h{width}v1h-{width}z"
        return found


def heat_of(
    title: str, layers: Sequence[str], steps: Sequence[int], rows: Sequence[tuple[int, str, float]]
) -> Heat:
    """The map of (step, layer, SQNR in dB), in the order of steps: a layer that was not measured at
    a step, because others had their turn, keeps the colour of its last record."""
    values: dict[str, list[float | None]] = {layer: [] for layer in layers}
    last: dict[str, float] = {}
    waiting = [*reversed(rows)]
    for step in steps:
        while waiting and waiting[-1][0] <= step:
            _, layer, value = waiting.pop()
            last[layer] = value
        for layer in layers:
            values[layer].append(last.get(layer))
    return Heat(title=title, steps=steps, layers=layers, values=values)


def plot_heats(heats: Sequence[Heat], path: Place = None, *, ax: Axes | None = None) -> Figure:
    """Maps side by side, of the same layers: see `placed`."""
    return placed(heats, path, ax, lambda: _figure(heats), lambda axes: _alone(heats[0], axes))


def _figure(heats: Sequence[Heat]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = len(heats[0].layers)
    columns = min(len(heats), 3 if lines <= 24 else 5)
    rows = -(-len(heats) // columns)
    name = max(map(len, heats[0].layers))
    size = 3 + 0.07 * min(name, 40) + 2.6 * columns, rows * (0.9 + max(1.2, 0.13 * lines))
    made = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    places: list[Axes] = [*made.subplots(rows, columns, sharey=True, squeeze=False).flatten()]
    for heat, axes in zip(heats, places, strict=False):
        _draw(heat, axes)
    for axes in places[len(heats) :]:
        axes.remove()
    made.legend(handles=_keys(), title="SQNR in dB", loc="outside right upper", fontsize=8)
    return made


def _alone(heat: Heat, axes: Axes) -> None:
    _draw(heat, axes)
    axes.legend(
        handles=_keys(), title="SQNR in dB", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)
    )


def _draw(heat: Heat, axes: Axes) -> None:
    from matplotlib.colors import ListedColormap

    kinds = list(COLOURS)
    codes = [
        [math.nan if v is None else kinds.index(level(v)) for v in heat.values[layer]]
        for layer in heat.layers
    ]
    steps, count = list(heat.steps), len(heat.layers)
    gap = steps[-1] - steps[-2] if len(steps) > 1 else 1
    colours = ListedColormap(list(COLOURS.values()))
    edges = [*steps, steps[-1] + gap]
    axes.pcolormesh(
        edges, range(count + 1), codes, cmap=colours, vmin=-0.5, vmax=len(kinds) - 0.5,
        rasterized=True,
    )  # fmt: skip
    every = -(-count // NAMED)
    names = [plain(layer) for layer in heat.layers[::every]]
    axes.set_yticks([i + 0.5 for i in range(0, count, every)], names, fontsize=8 - (count > 24))
    axes.set_ylim(count, 0)
    axes.set_title(heat.title, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=7, axis="x")


def _keys() -> list[Any]:
    from matplotlib.patches import Patch

    names = level_names()
    looks = {**{names[kind]: colour for kind, colour in COLOURS.items()}, "not measured": "#ffffff"}
    return [Patch(facecolor=c, edgecolor="#b4bec9", label=name) for name, c in looks.items()]
