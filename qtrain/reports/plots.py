"""Figures without a display: their colours, how they are made and written.

matplotlib, which takes a second to import, is imported when the first is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files.whole import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which colour-blind readers can tell apart; dashes help print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--")
MARKERS = "osD^v<>x"


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)  # no display, no pyplot state
    return made


def whole_steps(axes: Axes, most: int = 10) -> None:
    """Ticks at integers alone, at most so many steps from one to the next."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True))


def plain(name: str) -> str:
    """A name as text: matplotlib takes what is between two dollars for a formula."""
    return name.replace("$", r"\$")


def save(made: Figure, path: Path) -> None:
    """Write the figure, atomically; ValueError for another ending than .png or .svg."""
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise ValueError(f"plot: got {str(path)!r}, need a path that ends in .png or .svg")
    # the same run gives the same file: no date in an SVG
    metadata = {"Date": None} if kind == ".svg" else {}
    write_atomically(path, lambda file: made.savefig(file, format=kind[1:], metadata=metadata))
