"""What is drawn, lines within panels: in a page, an Axes of the caller's, or a file.

matplotlib, which takes a second to import, is imported when the first is drawn.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import checks
from ..files.whole import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure


#: Where a figure is written: a .png or .svg, or nowhere.
Place: TypeAlias = str | os.PathLike[str] | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    kind     its style, in a page a class: "baseline", "quantized", "low", "median", "margin",
             "interval", "arm0" to "arm7"; with " thin" for noisy ones, " area" for areas; in a file
             lines of one kind look alike, "" stands for the label
    points   (x, y); a y that is not finite leaves a gap
    top      (x, y) is the lower edge of an area, and this the upper
    marks    whether each point has a mark;  names: and something written beside it
    joined   whether a line joins them
    """

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = ""
    top: Sequence[float] = ()
    marks: bool = False
    names: Sequence[str] = ()
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one x.

    title   what is drawn;  text: the same in words, where the title is too short to stand alone
    unit    what the y axis shows;  x: what the x axis counts, or shows
    ticks   what stands at x = 0, 1, ... instead of numbers
    log     the axes on a logarithmic scale: "x", "y"
    """

    title: str
    unit: str
    x: str
    lines: Sequence[Line]
    text: str = ""
    ticks: Sequence[str] = ()
    log: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """Every finite point, of areas both edges."""
        found = [point for line in self.lines for point in line.points]
        for line in self.lines:
            found += [(x, y) for (x, _), y in zip(line.points, line.top, strict=False)]
        return [(x, y) for x, y in found if math.isfinite(y)]


#: Okabe and Ito's palette, which colour-blind readers can tell apart; dashes help print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--")
MARKERS = "osD^v<>"


def plot(
    panels: Sequence[Panel],
    path: Place = None,
    *,
    ax: Axes | None = None,
    legend: Sequence[str] = (),
) -> Figure:
    """What `figure` draws, or one panel into `ax`: see `placed`."""
    return placed(
        panels, path, ax, lambda: figure(panels, legend=legend),
        lambda axes: _alone(panels[0], axes, legend),
    )  # fmt: skip


def placed(
    panels: Sequence[Any],
    path: Place,
    ax: Axes | None,
    whole: Callable[[], Figure],
    alone: Callable[[Axes], object],
) -> Figure:
    """The figure that `whole` makes, or that of `ax` once `alone` has drawn the one panel there;
    written to a .png or .svg where a path is given.

    ValueError for a path of another ending, and where `ax` would have to hold several panels.
    """
    where = None if path is None else checks.path("plot", path)
    if where is not None:
        _kind_of(where)  # before a second of drawing
    if ax is None:
        made = whole()
    else:
        from matplotlib.axes import Axes

        checks.instance("ax", ax, Axes, "an Axes of matplotlib, as plt.subplots() gives")
        if len(panels) != 1:
            titles = ", ".join(panel.title.replace("\n", " ") for panel in panels)
            raise ValueError(
                f"ax: got one for {len(panels)} panels ({titles}); leave it out for a figure of "
                "its own, or choose one of them"
            )
        alone(ax)
        figure: Any = ax.figure
        made = figure.figure  # of a subfigure the one that holds it
    if where is not None:
        save_figure(made, where)
    return made


def _alone(panel: Panel, axes: Axes, legend: Sequence[str]) -> None:
    draw(panel, axes)
    axes.legend(fontsize=8, title=plain("\n".join(legend)) or None, title_fontsize=8)


def _kind_of(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise ValueError(f"plot: got {str(path)!r}, need a path that ends in .png or .svg")
    return kind[1:]


def save_figure(made: Figure, path: Path) -> None:
    """Write a figure atomically to a PNG or SVG; ValueError for a path of another ending."""
    kind = _kind_of(path)
    from matplotlib import rc_context

    # the same run gives the same file: no date in an SVG, no names drawn at random
    metadata = {"Date": None} if kind == "svg" else {}
    with rc_context({"svg.hashsalt": "qtrain"}):
        write_atomically(path, lambda file: made.savefig(file, format=kind, metadata=metadata))


def figure(panels: Sequence[Panel], *, legend: Sequence[str] = ()) -> Figure:
    """Panels, three to a row, and beside them each line's label once.

    legend   what stands beside them instead; labels are in each panel, then
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(_kind(line) for panel in panels for line in panel.lines))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = max(9.0, 2 + 4.3 * columns, 2 + 0.35 * max(len(panel.ticks) for panel in panels))
    height = max(5.0 if rows == 1 else 3.0 * rows, 1 + 0.2 * len(legend or kinds))
    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)  # no display, no pyplot state
    places: list[Axes] = [*made.subplots(rows, columns, squeeze=False).flatten()]
    labelled: dict[str, Any] = {}
    for panel, axes in zip(panels, places, strict=False):
        for line, found in draw(panel, axes, kinds):
            if not line.top:
                labelled.setdefault(plain(line.label), found)
        if legend:
            axes.legend(fontsize=8)
    for axes in places[len(panels) :]:
        axes.remove()
    if legend:  # outside it covers no line
        title = plain("\n".join(legend))
        made.legend([], [], loc="outside right upper", title=title, title_fontsize=8, frameon=False)
    else:
        made.legend(labelled.values(), labelled.keys(), loc="outside right upper", fontsize=8)
    return made


def draw(panel: Panel, axes: Axes, kinds: Sequence[str] = ()) -> list[tuple[Line, Any]]:
    """Draw a panel -> each line, and what matplotlib made of it.

    kinds   of all lines that are to differ, in the order of their colours; default: the panel's
    """
    kinds = kinds or list(dict.fromkeys(map(_kind, panel.lines)))
    found = [(line, _draw(line, axes, kinds.index(_kind(line)))) for line in panel.lines]
    _frame(panel, axes)
    return found


def _kind(line: Line) -> str:
    return line.kind.removesuffix(" thin").removesuffix(" area") or line.label


def plain(name: str) -> str:
    """A name as text: matplotlib takes what is between two dollars for a formula."""
    return name.replace("$", r"\$")


def _draw(line: Line, axes: Axes, i: int) -> Any:
    """Draw the i-th kind of line: its colour and mark are no other's of the first 56."""
    points = [(x, y if math.isfinite(y) else math.nan) for x, y in line.points]
    steps, values = [x for x, _ in points], [y for _, y in points]
    colour = COLOURS[i % len(COLOURS)]
    if line.top:
        return axes.fill_between(steps, values, line.top, color=colour, alpha=0.15)
    (found,) = axes.plot(
        steps, values, color=colour, linewidth=1, markersize=4, label=plain(line.label),
        linestyle=DASHES[i % 2] if line.joined else "",
        marker=MARKERS[i % len(MARKERS)] if line.marks else "",
        alpha=0.5 if line.kind.endswith(" thin") else 1,
    )  # fmt: skip
    above = Counter[float]()  # points of one x lie above one another
    for name, (x, y) in zip(line.names, points, strict=False):
        place = 6 + 12 * (above[x] % 4), -3
        axes.annotate(name, (x, y), place, textcoords="offset points", fontsize=7)
        above[x] += 1
    return found


def _frame(panel: Panel, axes: Axes) -> None:
    """Titles, ticks and grid."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(plain(panel.title), fontsize=9)
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.grid(alpha=0.3, which="both" if panel.log else "major")
    if "y" in panel.log:
        axes.set_yscale("log")
    if "x" in panel.log:
        axes.margins(x=0.1)
        axes.set_xscale("log")
    elif panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), map(plain, panel.ticks), rotation=90, fontsize=8)
    else:  # at steps
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
