"""What a page says first of errors: how large they are, and where they are largest."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.page.html import count, decibels, esc, name, table
from ..reports.page.shell import Section
from .figures import FIGURES
from .row import Row, layers_of, worst_first

#: What, value, remark; HTML all.
Card = tuple[str, str, str]


def measured_on(measured: str) -> str:
    """One line on what was measured."""
    return f"<p>Each layer and role against full precision, on {esc(measured)}.</p>"


def summary_section(
    rows: Sequence[Row],
    *,
    remark: str = "",
    before: Sequence[Card] = (),
    behind: Sequence[Card] = (),
) -> Section:
    """Figures of the errors, between others where more is known, and the rows of lowest SQNR."""
    if not rows:
        remark += '<p class="remark">No error was measured: nothing is quantized, or not yet.</p>\n'
    cards = "".join(
        f'<div><dt>{what}</dt><dd>{value}</dd><dd class="more">{more}</dd></div>'
        for what, value, more in (*before, *_figures(rows), *behind)
    )
    body = f'{remark}<dl class="cards">{cards}</dl>\n{_largest(rows)}'
    return Section(id="summary", title="Summary", body=body)


def _figures(rows: Sequence[Row]) -> list[Card]:
    if not rows:
        return []
    worst = worst_first(rows)[0]
    value = f"{decibels(worst.sqnr_db)} <small>dB</small>"
    lost = sum(row.nonfinite > 0 for row in rows)
    remark = f"{count(len(rows), 'tensor')}, "
    remark += f"{lost} with values that are not finite" if lost else "all finite"
    return [
        ("Lowest SQNR", value, f"{name(worst.layer)}, {esc(worst.role)}"),
        ("Measured", f"{len(layers_of(rows)):,} <small>layers</small>", remark),
    ]


def _largest(rows: Sequence[Row], most: int = 10) -> str:
    """A table of the rows of lowest SQNR; "" where there is none."""
    if not rows:
        return ""
    places = {layer: i for i, layer in enumerate(layers_of(rows))}
    lines = [
        [
            f'<a href="#layer-{places[row.layer]}">{name(row.layer)}</a>',
            esc(row.role),
            *(f.unit.brief(getattr(row, f.name)) for f in FIGURES if f.brief),
        ]
        for row in worst_first(rows)[:most]
    ]
    return table(
        f"Largest errors: {count(len(lines), 'tensor')} of lowest SQNR",
        ["layer", "role", *(f.page for f in FIGURES if f.brief)],
        lines,
        words=["role"],
    )
