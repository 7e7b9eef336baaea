"""The rows of a report as text of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from ..files.terminal import printable
from ..reports.table import Table, wrapped
from .figures import FIGURES, NUMBER
from .row import Row


def error_table(rows: Sequence[Row]) -> str:
    """One line a row under the name of its layer; what the stars mean, below."""
    columns = [figure for figure in FIGURES if figure.text]
    lines: list[list[str] | str] = []
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].layer != row.layer:
            lines.append(row.layer)
        lines.append(
            [
                f"- {row.role}{'*' if row.note else ''}",
                *(figure.unit.text(getattr(row, figure.name)) for figure in columns),
                NUMBER.text(max(abs(row.low), abs(row.high))),
            ]
        )
    headers = ["layer and role", *(figure.text for figure in columns), "largest"]
    notes = sorted({row.note for row in rows if row.note})
    remarks = [part for note in notes for part in wrapped(f"* {note}")]
    return "\n".join([Table(headers=headers, lines=lines).text(), *remarks])


def overview_table(rows: Sequence[Row], roles: Sequence[str]) -> str:
    """One line a layer: the SQNR in dB of each of `roles`."""
    found = {(row.layer, row.role): f"{row.sqnr_db:.1f}" for row in rows}
    layers = dict.fromkeys(row.layer for row in rows)
    lines = [[layer, *(found.get((layer, role), "") for role in roles)] for layer in layers]
    names = (printable(role, keep="") for role in roles)
    broken = [name.replace("_", "_\n").replace(" ", "\n") for name in names]
    return Table(headers=["SQNR (dB)", *broken], lines=lines).text()
