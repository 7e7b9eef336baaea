"""The numeric error of every layer and role, as a table that prints and saves."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill

from .. import checks
from ..files.terminal import printable
from ..reports.rows import save_rows
from ..reports.table import WIDTH
from .report_table import error_table, overview_table

#: How many rows print, of those of lowest SQNR.
SHOWN = 10


@dataclass(frozen=True)
class Row:
    """The error of one tensor of one layer, against the same tensor in full precision.

    layer       module path;  role: input, weight, output, grad_output (of either backward
                product), grad_input, grad_weight
    sqnr_db     10 log10(sum x^2 / sum (q - x)^2), dB; inf without error
    cosine      of x and q
    bias        mean signed error, mean(q - x), in the tensor's own unit
    clipped     fraction of elements outside the representable interval
    zeroed      fraction of elements that are not 0 but became 0
    nonfinite   how many elements of q are NaN or infinite
    low, high   the range of x
    elements    how many elements
    note        what else to know, such as a scale folded in
    relative_bias   the mean signed error in units of the mean magnitude, mean(q - x) / mean|x|
    saturated   fraction of elements at an end of the format's range that is not 0
    gain        what the error has of the signal, <q - x, x> / <x, x>: 0 where it has nothing of it,
                -1 where nothing of the signal is left
    """

    layer: str
    role: str
    sqnr_db: float
    cosine: float
    bias: float
    clipped: float
    zeroed: float
    nonfinite: int
    low: float
    high: float
    elements: int
    note: str = ""
    relative_bias: float = math.nan
    saturated: float = 0.0
    gain: float = math.nan


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
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"worst: got {checks.shown(count)}, need a positive integer")
        key = lambda row: -math.inf if math.isnan(row.sqnr_db) else row.sqnr_db  # noqa: E731
        return sorted(self.rows, key=key)[:count]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, or a page to an .html file, atomically.

        ValueError for other endings.
        """
        kind = checks.path("save", path).suffix
        if kind == ".html":
            from ..reports.page.sections import save_page  # a page knows runs, which know reports
            from ..training.record import RunRecord

            return save_page(
                RunRecord(name="Numeric error", errors=self, measured="one batch"), path
            )
        if kind not in (".json", ".csv"):
            raise ValueError(
                f"save: got {str(path)!r}, need a path that ends in .json, .csv or .html"
            )
        return save_rows(self.rows, Row, path)

    @property
    def layers(self) -> list[str]:
        """Their names, in network order."""
        return list(dict.fromkeys(row.layer for row in self.rows))

    @property
    def roles(self) -> list[str]:
        """Every role that some layer has, in the order of the layer that has them all."""
        places: dict[str, int] = {}
        place, last = 0, None
        for row in self.rows:
            place = place + 1 if row.layer == last else 0
            places[row.role] = max(places.get(row.role, 0), place)
            last = row.layer
        return sorted(places, key=lambda role: places[role])

    def overview(self) -> str:
        """One line per layer: the SQNR in dB of each role."""
        return self._with_remark(overview_table(self.rows, self.roles))

    def table(self, count: int | None = None) -> str:
        """The rows in network order, or the worst `count` of them, the layer of the worst first."""
        rows = self.rows if count is None else self.worst(count)
        if count is not None:
            layers = list(dict.fromkeys(row.layer for row in rows))
            rows = sorted(rows, key=lambda row: layers.index(row.layer))
        return self._with_remark(error_table(rows))

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
        return (
            f"{worst.role} of {worst.layer!r} has the lowest SQNR, {worst.sqnr_db:.1f} dB; the "
            f"median of {len(self.rows)} tensors in {layers} layer{'s' * (layers != 1)} is "
            f"{median(known) if known else math.nan:.1f} dB"
            + (f"; in {drowned} the error exceeds the signal" if drowned else "")
            + (f"; {broken} hold NaN or infinity" if broken else "")
            + "."
        )

    def _with_remark(self, text: str) -> str:
        return f"{text}\n{self.remark}" if self.remark else text
