"""The numeric error of every layer and role, as a table that prints and saves."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING

from .. import checks
from ..files.terminal import printable
from ..reports.numbers import decibels, in_decibels, short
from ..reports.plots import Line, Panel, plot
from ..reports.rows import save_rows
from ..reports.table import WIDTH, Table, wrapped
from .figures import FIGURES
from .page import save_page
from .row import SUMS, Row, layers_of, roles_of, worst_first

if TYPE_CHECKING:
    from ..reports.plots import Axes, Figure, Place

#: How many rows print, of those of lowest SQNR.
SHOWN = 10


@dataclass(frozen=True)
class Report:
    """Rows in network order.  `print(report)`: a sentence and the ten worst; `report.table()`: all;
    `report.overview()`, `report.worst(5)`, `report.save("errors.json")`.

    remark   what to know of all rows: which layers they are of; printed below them
    """

    rows: tuple[Row, ...]
    remark: str = ""

    def worst(self, count: int = 5) -> list[Row]:
        """The rows of lowest SQNR, a NaN first."""
        return worst_first(self.rows)[: checks.integer("worst", count, low=1)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, or a page to an .html file, atomically.

        ValueError for other endings.
        """
        kind = checks.path("save", path).suffix
        if kind == ".html":
            return save_page(self.rows, path)
        if kind not in (".json", ".csv"):
            raise ValueError(
                f"save: got {str(path)!r}, need a path that ends in .json, .csv or .html"
            )
        return save_rows(self.rows, Row, path)

    def plot(self, path: Place = None, *, ax: Axes | None = None) -> Figure:
        """SQNR of every layer in network order, one line a role; to a PNG or SVG where a path is
        given, into `ax` where one is."""
        places = {layer: place for place, layer in enumerate(self.layers)}
        lines = []
        for role in dict.fromkeys(row.role for row in self.rows):
            points = [(places[row.layer], row.sqnr_db) for row in self.rows if row.role == role]
            lines.append(Line(label=role, points=points, marks=True))
        unit = "SQNR in dB (higher is better)"
        panel = Panel(title="", unit=unit, x="", lines=lines, ticks=self.layers)
        return plot([panel], path, ax=ax)

    @property
    def layers(self) -> list[str]:
        """Their names, in network order."""
        return layers_of(self.rows)

    @property
    def roles(self) -> list[str]:
        """Every role that some layer has, in the order of the layer that has them all."""
        return roles_of(self.rows)

    def overview(self) -> str:
        """One line per layer: the SQNR in dB of each role, but for accumulators'."""
        roles = [role for role in self.roles if role not in SUMS.values()]
        return self._with_remark(_overview(self.rows, roles))

    def table(self, count: int | None = None) -> str:
        """The rows in network order, or the worst `count` of them, the layer of the worst first."""
        rows = self.rows if count is None else self.worst(count)
        if count is not None:
            layers = list(dict.fromkeys(row.layer for row in rows))
            rows = sorted(rows, key=lambda row: layers.index(row.layer))
        return self._with_remark(_errors(rows))

    def __str__(self) -> str:
        parts = [fill(printable(self._verdict(), keep=""), WIDTH), self.table(SHOWN)]
        if len(self.rows) > SHOWN:
            parts.append(f"{len(self.rows) - SHOWN} more: report.table()")
        return "\n\n".join(parts)

    def _verdict(self) -> str:
        """What the rows say, in one sentence."""
        if not self.rows:
            return "Nothing was measured."
        worst = self.worst(1)[0]
        known = [row.sqnr_db for row in self.rows if not math.isnan(row.sqnr_db)]
        layers, drowned = len(self.layers), sum(sqnr < 0 for sqnr in known)
        broken = sum(row.nonfinite > 0 for row in self.rows)
        without = len(self.rows) - len(known)
        return (
            f"{worst.role} of {worst.layer!r} has the lowest SQNR, {in_decibels(worst.sqnr_db)}; "
            f"the median of {len(self.rows)} tensors in {layers} layer{'s' * (layers != 1)}"
            + (f" ({without} have none) is " if without else " is ")
            + f"{in_decibels(median(known) if known else math.nan)}"
            + (f"; in {drowned} the error exceeds the signal" if drowned else "")
            + (f"; {broken} hold NaN or infinity" if broken else "")
            + "."
        )

    def _with_remark(self, text: str) -> str:
        return f"{text}\n{self.remark}" if self.remark else text


def _errors(rows: Sequence[Row]) -> str:
    """One line a row under the name of its layer; what the stars mean, below."""
    columns = [figure for figure in FIGURES if figure.text]
    lines: list[list[str] | str] = []
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    stars = {note: f"*{i}" if len(notes) > 1 else "*" for i, note in enumerate(notes, 1)}
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].layer != row.layer:
            lines.append(row.layer)
        lines.append(
            [
                f"- {row.role}{stars.get(row.note, '')}",
                *(figure.unit(getattr(row, figure.name)) for figure in columns),
                short(max(abs(row.low), abs(row.high))),
            ]
        )
    headers = ["layer and role", *(figure.text for figure in columns), "largest"]
    remarks = [part for note, star in stars.items() for part in wrapped(f"{star} {note}")]
    return "\n".join([Table(headers=headers, lines=lines).text(), *remarks])


def _overview(rows: Sequence[Row], roles: Sequence[str]) -> str:
    """One line a layer: the SQNR in dB of each of `roles`."""
    found = {(row.layer, row.role): decibels(row.sqnr_db) for row in rows}
    layers = dict.fromkeys(row.layer for row in rows)
    lines = [[layer, *(found.get((layer, role), "") for role in roles)] for layer in layers]
    names = (printable(role, keep="") for role in roles)
    broken = [name.replace("_", "_\n").replace(" ", "\n") for name in names]
    return Table(headers=["SQNR (dB)", *broken], lines=lines).text()
