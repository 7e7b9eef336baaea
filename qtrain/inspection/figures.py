"""The figures of a tensor, each once: how one is computed, merged over calls, and shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from ..reports.numbers import decibels, percent, short
from .detail import Detail, error_of_mean, mean
from .pair import TensorPair
from .row import Row


@dataclass
class Sums:
    """What a row needs, summed over every call of a layer, in fp64."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    power: float = 0.0
    error: float = 0.0
    magnitude: float = 0.0
    clipped: int = 0
    zeroed: int = 0
    saturated: int = 0
    nonfinite: int = 0
    low: float = math.inf
    high: float = -math.inf
    note: str = ""

    def add(self, pair: TensorPair, *, quantized: bool) -> None:
        """A tensor and what became of it; quantized: by a format that it can lie outside of."""
        if pair.x.numel() == 0:
            return
        x, value, error = pair.x, pair.value, pair.error
        if quantized:
            self.clipped += int(pair.outside.sum())
            self.saturated += int(pair.saturated.sum())
        signal = x.square().sum().item()
        self.elements += x.numel()
        self.signal += signal
        self.noise += error.square().sum().item()
        self.dot += (x * value).sum().item()
        self.power += value.square().sum().item()
        self.error += error.sum().item()
        self.magnitude += x.abs().sum().item()
        self.zeroed += int(((x != 0) & (value == 0)).sum())
        self.nonfinite += int((~torch.isfinite(value)).sum())
        finite = x if math.isfinite(signal) else x[torch.isfinite(x)]
        if finite.numel() > 0:
            low, high = finite.aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    def row(self, layer: str, role: str) -> Row:
        return Row(layer, role, **computed(FIGURES, self), note=self.note)

    @staticmethod
    def share(name: str) -> Callable[[Sums], float]:
        """A sum by element."""
        return lambda sums: getattr(sums, name) / max(sums.elements, 1)

    @property
    def known(self) -> bool:
        """Whether the sums of squares are finite."""
        return math.isfinite(self.noise) and math.isfinite(self.signal)

    def sqnr_db(self) -> float:
        if not self.known:
            return math.nan
        ratio = math.inf if self.noise == 0 else self.signal / self.noise
        return -math.inf if ratio == 0 else 10 * math.log10(ratio)

    def cosine(self) -> float:
        if not self.known:
            return math.nan
        norms = math.sqrt(self.signal) * math.sqrt(self.power)
        return self.dot / norms if norms > 0 else float(self.signal == self.power)

    def relative_bias(self) -> float:
        if self.magnitude > 0:
            return self.error / self.magnitude
        return 0.0 if self.error == 0 else math.nan

    def gain(self) -> float:
        if not self.known:
            return math.nan
        return (self.dot - self.signal) / self.signal if self.signal > 0 else 0.0

    def end(self, value: float) -> float:
        """An end of the range of x: 0 without an element, NaN where none is finite."""
        none = 0.0 if self.elements == 0 else math.nan
        return value if self.low <= self.high else none


def computed(figures: Sequence[Figure], of: Sums | Detail) -> dict[str, Any]:
    """Those of the figures that follow from this, by name."""
    return {figure.name: figure.of(of) for figure in figures if figure.of is not None}


def _cosine(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.5f}"


def _integer(value: float) -> str:
    return f"{value:,}"


@dataclass(frozen=True)
class Figure:
    """A number of a `Row` or `MonitorRow`, which says there what it is.

    name     the row's field, and so the name in JSON, CSV and TensorBoard
    of       its value, over every call of a layer: of `Sums` in `FIGURES`, of a `Detail` in
             `MONITORED`; None: of earlier records, see `Record`
    unit     how its values are written: `decibels`, `percent`, ...
    page     the heading of its column in a page; "" where none shows it
    text     ... in a report's text
    brief    whether the page's table of the largest errors shows it
    event    what TensorBoard shows of it; None: nothing
    """

    name: str
    of: Callable[[Any], Any] | None
    unit: Callable[[float], str]
    page: str = ""
    text: str = ""
    brief: bool = False
    event: Callable[[Any], float] | None = None


#: Of every row, in the order in which they are shown.
FIGURES = (
    Figure("sqnr_db", Sums.sqnr_db, decibels, "SQNR (dB)", "SQNR\n(dB)", True, float),
    Figure("cosine", Sums.cosine, _cosine, "cosine", "cosine", True, float),
    Figure("bias", Sums.share("error"), short, "bias", "bias", event=float),
    Figure("relative_bias", Sums.relative_bias, short, "relative bias", event=float),
    Figure("clipped", Sums.share("clipped"), percent, "clipped (%)", "clip\n(%)", True, float),
    Figure("zeroed", Sums.share("zeroed"), percent, "zeroed (%)", "zero\n(%)", True, float),
    Figure("saturated", Sums.share("saturated"), percent, "saturated (%)", "", True, float),
    Figure("nonfinite", lambda s: s.nonfinite, _integer, "not finite", "not\nfinite", True, float),
    Figure("low", lambda s: s.end(s.low), short, "low"),
    Figure("high", lambda s: s.end(s.high), short, "high"),
    Figure("elements", lambda s: s.elements, _integer, "elements"),
    Figure("gain", Sums.gain, short),
)


def _over_calls(
    name: str, merged: Callable[[list[float]], float], of: str = "roundings"
) -> Callable[[Detail], Any]:
    """A field of `Rounded` or `Channels`, over the calls that have it; None where none does."""

    def value(detail: Detail) -> float | None:
        found = [v for v in (getattr(r, name) for r in getattr(detail, of)) if v is not None]
        return merged(found) if found else None

    return value


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


#: Of a `MonitorRow` besides: what is an error is the mean over the calls, what is not the largest.
MONITORED = (
    Figure("scale", lambda d: d.scale, short, event=itemgetter(1)),
    Figure("drift", None, short, event=float),
    Figure("offset", _over_calls("offset", mean), short),
    Figure("offset_error", _over_calls("offset_error", error_of_mean), short),
    Figure("spread", _over_calls("spread", _rms), short),
    Figure("reach", _over_calls("reach", max), short),
    Figure("axis", lambda d: d.noise[0], _integer),
    Figure("shared", lambda d: d.noise[1], short),
    Figure("shared_error", lambda d: d.noise[2], short),
    Figure("outlier", _over_calls("outlier", max, "channels"), short),
    Figure("crowded", _over_calls("crowded", max, "channels"), percent),
    Figure("update", lambda d: None if d.weight is None else d.weight.update(), short),
    Figure("oscillation", None, percent),
)
