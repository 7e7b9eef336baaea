"""The errors of one batch as one HTML page, and the sections that every page of errors has."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..reports.heat import level, level_names
from ..reports.numbers import count, decibels, in_decibels, short
from ..reports.page.shell import Section, page, part, save
from ..reports.table import Cell, Table
from .figures import FIGURES
from .page_pictures import Picture, code_picture, error_picture, value_picture
from .row import ROLES, Row, layers_of, roles_of, worst_first
from .rows import MonitorRow

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
    remarks: Sequence[str] = (),
    before: Sequence[Card] = (),
    behind: Sequence[Card] = (),
) -> Section:
    """Figures of the errors, between others where more is known, and the rows of lowest SQNR."""
    told = list(remarks)
    if not rows:
        told.append("No error was measured: nothing is quantized, or not yet.")
    cards = [*before, *_figures(rows), *behind]
    body = "".join(part("remark", text) for text in told) + part("cards", cards)
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
        (
            "Lowest SQNR",
            [(decibels(worst.sqnr_db), "dB" * math.isfinite(worst.sqnr_db))],
            f"{worst.layer}, {worst.role}",
        ),
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
            *(figure.unit(getattr(row, figure.name)) for figure in figures),
        ]
        for row in worst_first(rows)[:most]
    ]
    return Table(
        caption=f"Largest errors: {count(len(lines), 'tensor')} of lowest SQNR",
        headers=["layer", "role", *(figure.page for figure in figures)],
        lines=lines,
        words=["role"],
    )


def network_section(rows: Sequence[Row], measured: str) -> Section | None:
    """A strip of the whole network; measured: on what its errors were."""
    if not rows:
        return None
    text = (
        f"SQNR in dB of {count(len(layers_of(rows)), 'layer')} in network order, measured on "
        f"{measured}: how far each tensor lies above its own error; higher is better. Errors are "
        "local: what a layer passes on is not counted against the next."
    )
    body = part("text", [text]) + part("legend", level_names().items()) + strip(rows)
    return Section(id="network", title="Network", body=body)


def strip(rows: Sequence[Row]) -> str:
    """The SQNR of every layer and role as colours: layers across, roles down."""
    paths: dict[str, str] = {}  # one a colour
    for x, line in enumerate(_cells(rows)):
        for y, (kind, value) in enumerate(line):
            if value:
                paths[kind] = paths.get(kind, "") + f"M{x} {y}h1v1h-1z"
    layers = layers_of(rows)
    most = min(len(layers), 6)  # names under the strip, each where its stretch begins
    names = [layers[i * len(layers) // most] for i in range(most)]
    return part("strip", layers, roles_of(rows), paths, names)


def _cells(rows: Sequence[Row]) -> list[list[tuple[str, str]]]:
    """Of each layer's roles the class of its SQNR and that; ("", "") where a layer lacks one."""
    found = {(row.layer, row.role): (level(row.sqnr_db), decibels(row.sqnr_db)) for row in rows}
    roles = roles_of(rows)
    return [[found.get((layer, role), ("", "")) for role in roles] for layer in layers_of(rows)]


def layers_section(rows: Sequence[Row], monitor: Sequence[MonitorRow] = ()) -> Section | None:
    """The cells of every layer as a table, and what else is known of each: closed parts, which the
    script opens within the table.  monitor: the records over the run, if any."""
    if not rows:
        return None
    errors: dict[str, list[Row]] = {layer: [] for layer in layers_of(rows)}
    for row in rows:
        errors[row.layer].append(row)
    records: dict[str, list[MonitorRow]] = {layer: [] for layer in errors}
    for seen in monitor:
        records.setdefault(seen.layer, []).append(seen)
    text = "Each layer opens to all its figures."
    if monitor:
        text += (
            " Pictures of its last monitored step show a tensor's values by sign and binade, its "
            "codes from the lowest to the highest (heights are square roots of counts, so that "
            "tails show), and its SQNR by step."
        )
    parts = [_part(i, layer, own, records[layer]) for i, (layer, own) in enumerate(errors.items())]
    heat = part("heat", list(errors), roles_of(rows), _cells(rows))
    body = part("text", [text]) + heat + part("parts", parts)
    return Section(id="layers", title="Layers", body=body)


def _part(i: int, layer: str, rows: Sequence[Row], records: Sequence[MonitorRow]) -> str:
    worst = worst_first(rows)[0]
    figures = [figure for figure in FIGURES if figure.page]
    lines = [
        [
            f"{row.role}{'*' if row.note else ''}",
            *(figure.unit(getattr(row, figure.name)) for figure in figures),
        ]
        for row in rows
    ]
    headers = ["role", *(figure.page for figure in figures)]
    table = Table(caption=f"Error of {layer}", headers=headers, lines=lines)
    notes = [f"{row.role}: {row.note}" for row in rows if row.note]
    lowest = f"{worst.role}, {in_decibels(worst.sqnr_db)}"
    return part("layer", i, layer, lowest, _pictures(records), table, notes)


def _pictures(records: Sequence[MonitorRow]) -> list[tuple[str, str, list[Picture]]]:
    """Of each role that was monitored its name, what it was, and its values, codes and error."""
    found = []
    for role in ROLES:
        own = [row for row in records if row.role == role]
        if own:
            last = own[-1]
            pictures = [value_picture(last.values)]
            if last.codes:
                pictures.append(code_picture(last.codes))
            pictures.append(error_picture([(row.step, row.sqnr_db) for row in own]))
            found.append((role, f"step {last.step}{_scale(last)}", pictures))
    return found


def _scale(row: MonitorRow) -> str:
    if row.scale is None:
        return ""
    low, median, high = row.scale
    text = short(median) if low == high else f"{short(low)}, {short(median)}, {short(high)}"
    return f" · scale {text}"
