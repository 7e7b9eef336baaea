"""What is drawn: lines within panels, in a page or to a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    kind     its style, in a page a class: "baseline", "quantized" (with " thin" for noisy ones),
             "low", "median"; in a file lines of one kind look alike, "" stands for the label
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
