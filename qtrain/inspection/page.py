"""A report as one HTML page, and what every page says first of errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..reports.numbers import count, decibels
from ..reports.page.shell import Section, page, part, save
from ..reports.table import Cell, Table
from .figures import FIGURES
from .page_layers import layers_section
from .page_network import network_section
from .row import Row, layers_of, worst_first

#: What, (value, unit) in lines, remark.
Card = tuple[str, Sequence[tuple[str, str]], str]


def save_page(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write the errors of one batch as a page, atomically; ValueError for a path that does not end
    in .html."""
    measured = "one batch"
    sections = summary_section(rows), network_section(rows, measured), layers_section(rows)
    return save(page("Numeric error", measured_on(measured), sections), path)


def measured_on(measured: str) -> str:
    """One line on what was measured."""
    return part("text", [f"Each layer and role against full precision, on {measured}."])


def summary_section(
    rows: Sequence[Row],
    *,
    remark: str = "",
    before: Sequence[Card] = (),
    behind: Sequence[Card] = (),
) -> Section:
    """Figures of the errors, between others where more is known, and the rows of lowest SQNR."""
    remarks = [remark] if remark else []
    if not rows:
        remarks.append("No error was measured: nothing is quantized, or not yet.")
    cards = [*before, *_figures(rows), *behind]
    body = "".join(part("remark", text) for text in remarks) + part("cards", cards)
    if rows:
        body += part("table", _largest(rows))
    return Section(id="summary", title="Summary", body=body)


def _figures(rows: Sequence[Row]) -> list[Card]:
    if not rows:
        return []
    worst = worst_first(rows)[0]
    lost = sum(row.nonfinite > 0 for row in rows)
    remark = f"{count(len(rows), 'tensor')}, "
    remark += f"{lost} with values that are not finite" if lost else "all finite"
    return [
        ("Lowest SQNR", [(decibels(worst.sqnr_db), "dB")], f"{worst.layer}, {worst.role}"),
        ("Measured", [(f"{len(layers_of(rows)):,}", "layers")], remark),
    ]


def _largest(rows: Sequence[Row], most: int = 10) -> Table:
    """The rows of lowest SQNR."""
    places = {layer: i for i, layer in enumerate(layers_of(rows))}
    figures = [figure for figure in FIGURES if figure.brief]
    lines: list[list[Cell]] = [
        [
            (row.layer, f"layer-{places[row.layer]}"),
            row.role,
            *(figure.unit.brief(getattr(row, figure.name)) for figure in figures),
        ]
        for row in worst_first(rows)[:most]
    ]
    return Table(
        caption=f"Largest errors: {count(len(lines), 'tensor')} of lowest SQNR",
        headers=["layer", "role", *(figure.page for figure in figures)],
        lines=lines,
        words=["role"],
    )
