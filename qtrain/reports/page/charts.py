"""Charts of lines over steps, as SVG that takes its colours from the page's style."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..numbers import short
from ..plots import Line, Panel

#: The drawing's size and the margins around its axes, in its own units.
WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 34
#: The most points of a line.
POINTS = 240


def drawn(panel: Panel) -> dict[str, Any]:
    """What the template needs of a panel with a finite point: its size, its axes' ticks, its lines
    as paths, itself in words, and its points for the script."""
    lines = [line if line.top else _thinned(line) for line in panel.lines]
    finite = replace(panel, lines=lines).points
    across = _Axis([a for a, _ in finite], LEFT, WIDTH - RIGHT, whole=True)
    heights = [b for _, b in finite]
    logarithmic = "y" in panel.log and min(heights) > 0 and max(heights) > 2 * min(heights)
    up = (_LogAxis if logarithmic else _Axis)(heights, HEIGHT - BOTTOM, TOP)
    plot = {
        "x": [across.low, across.high, LEFT, WIDTH - RIGHT],
        "unit": panel.x,
        "lines": [[line.label, _told(line)] for line in lines],
    }
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "up": [(up(value), up.text(value)) for value in up.ticks],
        "across": [(across(value), text) for value, text in _across(panel, across)],
        "lines": [(line.kind, _path(line, across, up), _marks(line, across, up)) for line in lines],
        "data": json.dumps(plot, separators=(",", ":"), ensure_ascii=True),
        "described": _described(lines, panel.unit, panel.x),
    }  # fmt: skip


def _across(panel: Panel, axis: _Axis) -> list[tuple[float, str]]:
    """(x, what stands there)."""
    if panel.ticks:
        return [(float(i), text) for i, text in enumerate(panel.ticks)]
    return [(value, f"{value:g}") for value in axis.ticks]


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


class _LogAxis(_Axis):
    """The same on a logarithmic scale, of values above 0: those that become small stay readable."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        ends = math.log10(min(values)), math.log10(max(values))
        super().__init__(ends, start, end)
        self.low, self.high = ends
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            ticks = [step * 10.0**power for power in powers for step in steps]
            self.ticks = [x for x in ticks if self.low <= math.log10(x) + 1e-9 <= self.high + 2e-9]
            if len(self.ticks) > 2:
                break
        self.ticks = self.ticks[:: -(-len(self.ticks) // 6)]

    def text(self, value: float) -> str:
        """A tick, 0.02 or 3."""
        return f"{value:.4g}"

    def __call__(self, value: float) -> str:
        return super().__call__(math.log10(value))


def _path(line: Line, across: _Axis, up: _Axis) -> str:
    if line.top:
        upper = "L".join(
            f"{across(x)} {up(y)}" for (x, _), y in zip(line.points, line.top, strict=True)
        )
        lower = "L".join(f"{across(x)} {up(y)}" for x, y in reversed(line.points))
        return f"M{upper}L{lower}Z"
    path, pen = "", "M"
    for x, y in line.points:
        if math.isfinite(y):
            path += f"{pen}{across(x)} {up(y)}"
        pen = "L" if math.isfinite(y) else "M"
    return path


def _marks(line: Line, across: _Axis, up: _Axis) -> list[tuple[str, str]]:
    if not line.marks:
        return []
    return [(across(x), up(y)) for x, y in line.points if math.isfinite(y)]


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
    return replace(line, points=kept)


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
