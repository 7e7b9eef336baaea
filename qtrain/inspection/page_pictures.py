"""Small pictures of one tensor over a run: its values, its codes, its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..reports.numbers import decibels, percent, power
from .distributions import HIGHEST, LOWEST, VALUE_BINS

#: The drawing's size in its own units, and the height of its bars or line.
WIDTH, HEIGHT, BARS = 120, 56, 42
#: The most bars of codes: neighbouring codes share one.
CODE_BARS = 64
#: The most points of a line.
POINTS = 40

#: (class, transform or "", path) of what is drawn.
_Paths = Sequence[tuple[str, str, str]]


class Picture(NamedTuple):
    """What the template needs of one.

    title, text   what is shown, and what it says, in words
    labels        (x, anchor, text) under the base line
    """

    title: str
    text: str
    paths: _Paths
    labels: Sequence[tuple[float, str, str]]
    width: float = WIDTH
    height: float = HEIGHT
    base: float = BARS


def value_picture(counts: Sequence[int]) -> Picture:
    """Bars of `value_counts`, of the binades that occur; their heights are square roots,
    so that tails show."""
    middle = VALUE_BINS // 2
    used = [abs(i - middle) - 1 + LOWEST for i, n in enumerate(counts) if n and i != middle]
    total = sum(counts)
    if not used:
        return _empty("values", "all zero" if total else "none is finite")
    low, high = min(used), max(used)
    positive = counts[middle + low - LOWEST + 1 : middle + high - LOWEST + 2]
    negative = counts[middle - (high - LOWEST + 1) : middle - (low - LOWEST)]
    zero = counts[middle]
    both = [a + b for a, b in zip(reversed(negative), positive, strict=True)]
    mode = low + both.index(max(both))
    shown = [*(negative if any(negative) else ()), zero, *positive]
    place = len(negative) if any(negative) else 0
    text = (
        f"magnitudes from {_binade(low)} to {_binade(high)}, most between "
        f"{power(mode)} and twice that; {percent(zero / total)} % zero, "
        f"{percent(sum(negative) / total)} % negative"
    )
    ends = [(0, "start", f"−{power(high + 1)}")] if any(negative) else []
    ends.append((round((place + 0.5) / len(shown) * WIDTH), "middle" if place else "start", "0"))
    ends.append((WIDTH, "end", power(high + 1)))
    return Picture("values", text, _bars(shown, {place: "zero"}), ends)


def code_picture(counts: Sequence[int]) -> Picture:
    """Bars of `code_counts`, lowest code first, neighbours together; heights are square
    roots."""
    total = sum(counts)
    if not total:
        return _empty("codes", "none")
    width = -(-len(counts) // CODE_BARS)
    shown = [sum(counts[i : i + width]) for i in range(0, len(counts), width)]
    used = sum(n > 0 for n in counts)
    text = (
        f"{used} of {len(counts)} bins are used; {percent(counts[0] / total)} % in the lowest, "
        f"{percent(counts[-1] / total)} % in the highest"
    )
    ends = [(0, "start", "lowest"), (WIDTH, "end", "highest")]
    return Picture("codes", text, _bars(shown, {0: "end", len(shown) - 1: "end"}), ends)


def error_picture(points: Sequence[tuple[int, float]]) -> Picture:
    """SQNR in dB against the step."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2:
        return _empty("SQNR by step", "fewer than two records that are finite")
    every = -(-len(finite) // POINTS)
    drawn = [*finite[:-1:every], finite[-1]]
    values = [value for _, value in drawn]
    low, high = min(values), max(values)
    first, last = drawn[0][0], drawn[-1][0]
    path = "L".join(
        f"{(step - first) / max(last - first, 1) * (WIDTH - 4) + 2:.0f} "
        f"{BARS - 3 - (value - low) / max(high - low, 1.0) * (BARS - 6):.0f}"
        for step, value in drawn
    )
    lost = len(points) - len(finite)
    text = (
        f"{decibels(values[0])} dB at step {first}, {decibels(values[-1])} dB at step {last}, "
        f"lowest {decibels(low)}, highest {decibels(high)}{f', {lost} not finite' if lost else ''}"
    )
    ends = [(0, "start", f"{first}"), (WIDTH, "end", f"{last}")]
    middle = (WIDTH // 2, "middle", f"{decibels(low)}–{decibels(high)} dB")
    return Picture("SQNR by step", text, [("line", "", f"M{path}")], [*ends, middle])


def _binade(exponent: int) -> str:
    """The binades at the ends hold what lies beyond them as well."""
    if exponent == LOWEST:
        return f"{power(exponent)} or less"
    return f"{power(exponent)} or more" if exponent == HIGHEST else power(exponent)


def _bars(counts: Sequence[int], special: dict[int, str]) -> _Paths:
    """Bars as thick strokes, one path a look, in units of a bar across and percent up."""
    largest = math.sqrt(max(counts))
    paths: dict[str, str] = {}
    for i, n in enumerate(counts):
        if n:
            kind = special.get(i, "bar")
            height = max(round(100 * math.sqrt(n) / largest), 2)
            paths[kind] = f"{paths.get(kind, '')}M{i} 0V{height}"
    unit = WIDTH / len(counts)
    place = f"matrix({unit:.4g} 0 0 {-BARS / 100:g} {unit / 2:.4g} {BARS:g})"
    return [(kind, place, path) for kind, path in paths.items()]


def _empty(title: str, text: str) -> Picture:
    return Picture(title, text, (), [(WIDTH // 2, "middle", text)])
