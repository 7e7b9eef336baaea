"""The numeric error of every layer and role, as a table that prints and saves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .. import checks
from ..reports.rows import save_rows
from .page import save_page
from .report_table import error_table, overview_table
from .row import Row, layers_of, roles_of, worst_first


@dataclass(frozen=True)
class Report:
    """Rows in network order.  `print(report)`, `report.worst(5)`, `report.save("errors.json")`.

    remark   what to know of all rows: which layers they are of; printed below them
    """

    rows: tuple[Row, ...]
    remark: str = ""

    def worst(self, count: int = 5) -> list[Row]:
        """The rows of lowest SQNR, a NaN first."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"worst: got {checks.shown(count)}, need a positive integer")
        return worst_first(self.rows)[:count]

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

    @property
    def layers(self) -> list[str]:
        """Their names, in network order."""
        return layers_of(self.rows)

    @property
    def roles(self) -> list[str]:
        """Every role that some layer has, in the order of the layer that has them all."""
        return roles_of(self.rows)

    def overview(self) -> str:
        """One line per layer: the SQNR in dB of each role."""
        return self._with_remark(overview_table(self.rows, self.roles))

    def __str__(self) -> str:
        return self._with_remark(error_table(self.rows))

    def _with_remark(self, text: str) -> str:
        return f"{text}\n{self.remark}" if self.remark else text
