"""Charts of lines over steps, as SVG that takes its colours from the page's style."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .html import esc, short

#: The drawing's size and the margins around its axes, in its own units.
WIDTH, HEIGHT = 300.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 8.0, 34.0
#: The most points of a line.
POINTS = 240


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    kind     its style: "baseline", "quantized" (with " thin" for noisy ones), "low", "median", or
             "band", an area between `y` and `top`
    points   (x, y); a y that is not finite leaves a gap
    marks    whether each point has a mark
    """

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    top: Sequence[float] = ()
    marks: bool = False


def line_chart(title: str, *, unit: str, x: str, lines: Sequence[Line]) -> str:
    """An SVG of the lines; "" where no point is finite.

    title   what is drawn; unit: what the y axis shows;  x: what the x axis counts
    """
    lines = [line if line.top else _thinned(line) for line in lines]
    finite = [(a, b) for line in lines for a, b in line.points if math.isfinite(b)]
    finite += [(a, b) for line in lines for (a, _), b in zip(line.points, line.top, strict=False)]
    if not finite:
        return ""
    across = _Axis([a for a, _ in finite], LEFT, WIDTH - RIGHT, whole=True)
    up = _Axis([b for _, b in finite], HEIGHT - BOTTOM, TOP)
    plot = {
        "x": [across.low, across.high, LEFT, WIDTH - RIGHT],
        "unit": x,
        "lines": [[line.label, _told(line)] for line in lines],
    }
    data = esc(json.dumps(plot, separators=(",", ":"), ensure_ascii=True))
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" data-plot="{data}">'
        f"<title>{esc(title)}</title><desc>{esc(_described(lines, unit, x))}</desc>"
        + "".join(_horizontal(value, up) for value in up.ticks)
        + "".join(_tick(value, across) for value in across.ticks)
        + f'<text class="unit" x="{WIDTH - RIGHT:g}" y="{HEIGHT - 3:g}" text-anchor="end">'
        f"{esc(x)}</text>" + "".join(_drawn(line, across, up) for line in lines) + "</svg>\n"
    )


class _Axis:
    """Places values between two ends of the drawing, and has round ones to write beside it."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, whole: bool = False
    ) -> None:
        low, high = min(values), max(values)
        # less than a hundredth of the values is noise, and has no room for ticks of four digits
        least = 2.0 if whole else max(abs(low), abs(high)) / 100 or 2.0
        if high - low < least and (not whole or low == high):
            low, high = (low + high - least) / 2, (low + high + least) / 2
        step = 10 ** math.floor(math.log10((high - low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 5)
        if whole:
            step = max(round(step), 1)
        else:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        self.low, self.high, self._start, self._end = low, high, start, end
        self._decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(low / step - 1e-9)
        self.ticks = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick in as many decimals as tell it from the next."""
        plain = self._decimals <= 4 and abs(value) < 1e5
        return f"{value:.{self._decimals}f}" if plain else f"{value:.4g}"

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self._start + share * (self._end - self._start):.1f}".removesuffix(".0")


def _horizontal(value: float, up: _Axis) -> str:
    y = up(value)
    return (
        f'<path class="grid" d="M{LEFT:g} {y}H{WIDTH - RIGHT:g}"/>'
        f'<text x="{LEFT - 5:g}" y="{y}" dy=".35em" text-anchor="end">{up.text(value)}</text>'
    )


def _tick(value: float, across: _Axis) -> str:
    x = across(value)
    return f'<text x="{x}" y="{HEIGHT - BOTTOM + 14:g}" text-anchor="middle">{value:g}</text>'


def _drawn(line: Line, across: _Axis, up: _Axis) -> str:
    if line.top:
        upper = "L".join(
            f"{across(x)} {up(y)}" for (x, _), y in zip(line.points, line.top, strict=True)
        )
        lower = "L".join(f"{across(x)} {up(y)}" for x, y in reversed(line.points))
        return f'<path class="{line.kind}" d="M{upper}L{lower}Z"/>'
    path, pen = "", "M"
    for x, y in line.points:
        if not math.isfinite(y):
            pen = "M"
            continue
        path += f"{pen}{across(x)} {up(y)}"
        pen = "L"
    drawn = f'<path class="{line.kind}" d="{path}"/>'
    if line.marks:
        drawn += "".join(
            f'<circle class="{line.kind}" cx="{across(x)}" cy="{up(y)}" r="2.5"/>'
            for x, y in line.points
            if math.isfinite(y)
        )
    return drawn


def _told(line: Line) -> list[tuple[float, str]]:
    """(x, what is shown under the pointer there) of every point."""
    if not line.top:
        return [(x, short(y)) for x, y in line.points]
    both = zip(line.points, line.top, strict=True)
    return [(x, f"{short(y)} to {short(top)}") for (x, y), top in both]


def _thinned(line: Line) -> Line:
    """At most `POINTS` points: the extremes of each stretch, and what is not finite."""
    points = line.points
    if len(points) <= POINTS:
        return line
    size = -(-len(points) // (POINTS // 3))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        ends = (
            {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        )
        lost = [point for point in stretch if not math.isfinite(point[1])][:1]
        kept += sorted([*ends, *lost])
    return Line(label=line.label, kind=line.kind, points=kept, marks=line.marks)


def _described(lines: Sequence[Line], unit: str, x: str) -> str:
    """The chart in words: where each line begins and ends, and its extremes."""
    parts = []
    for line in lines:
        finite = [point for point in line.points if math.isfinite(point[1])]
        lost = len(line.points) - len(finite)
        if finite and not line.top:
            values = [value for _, value in finite]
            parts.append(
                f"{line.label}: {short(values[0])} at {x} {finite[0][0]:g}, {short(values[-1])} at "
                f"{x} {finite[-1][0]:g}, lowest {short(min(values))}, highest {short(max(values))}"
            )
        if lost:
            parts.append(f"{line.label}: {lost} not finite")
    return f"{unit} by {x}. {'; '.join(parts)}."
