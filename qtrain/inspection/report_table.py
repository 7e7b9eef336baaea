"""The rows of a report as text of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from ..files.terminal import printable
from ..reports.table import WIDTH
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
    remarks = [
        part
        for note in notes
        for part in wrap(printable(f"* {note}"), WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([*aligned(headers, lines), *remarks])


def overview_table(rows: Sequence[Row], roles: Sequence[str]) -> str:
    """One line a layer: the SQNR in dB of each of `roles`."""
    found = {(row.layer, row.role): f"{row.sqnr_db:.1f}" for row in rows}
    layers = dict.fromkeys(row.layer for row in rows)
    lines: list[list[str] | str] = [
        [layer, *(found.get((layer, role), "") for role in roles)] for layer in layers
    ]
    names = (printable(role, keep="") for role in roles)
    broken = [name.replace("_", "_\n").replace(" ", "\n") for name in names]
    return "\n".join(aligned(["SQNR (dB)", *broken], lines))


def aligned(headers: Sequence[str], lines: Sequence[list[str] | str]) -> list[str]:
    """Columns under their headers, the first flush left.  A line that is one string, and a first
    cell that is too long for its column, stands above and is broken at 80 columns."""
    lines = [
        printable(line, keep="") if isinstance(line, str) else [printable(c, keep="") for c in line]
        for line in lines
    ]
    cells = [line for line in lines if isinstance(line, list)]
    above = [header.split("\n") for header in headers]
    height = max(map(len, above))
    top = [[""] * (height - len(parts)) + parts for parts in above]
    sizes = [max(map(len, column)) for column in zip(*cells, *zip(*top, strict=True), strict=True)]
    others = sum(sizes[1:])
    gap = 2 if sizes[0] + others + 2 * len(sizes[1:]) <= WIDTH else 1
    room = max(WIDTH - others - gap * len(sizes[1:]), len(headers[0]))
    names = [headers[0].split("\n")[-1], *(line[0] for line in cells)]
    sizes[0] = max(len(name) for name in names if len(name) <= room)

    def line(first: str, rest: Sequence[str]) -> str:
        parts = [part.rjust(size) for part, size in zip(rest, sizes[1:], strict=True)]
        return (" " * gap).join([first.ljust(sizes[0]), *parts]).rstrip()

    found = [line(first, rest) for first, *rest in zip(*top, strict=True)]
    found.append(line("-" * sizes[0], ["-" * size for size in sizes[1:]]))
    for row in lines:
        first, *rest = [row] if isinstance(row, str) else row
        if len(first) > sizes[0] or not rest:
            found += wrap(first, WIDTH) or [""]
            first = ""
        if rest:
            found.append(line(first, rest))
    return found
