"""Every layer in detail: what was measured of each role, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.numbers import decibels, short
from ..reports.page.shell import Section, part
from ..reports.table import Table
from .figures import FIGURES
from .page_network import heat
from .page_pictures import Picture, code_picture, error_picture, value_picture
from .roles import ROLES
from .row import Row, layers_of, worst_first
from .rows import MonitorRow


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
    body = part("text", [text]) + heat(rows) + part("parts", parts)
    return Section(id="layers", title="Layers", body=body)


def _part(i: int, layer: str, rows: Sequence[Row], records: Sequence[MonitorRow]) -> str:
    worst = worst_first(rows)[0]
    figures = [figure for figure in FIGURES if figure.page]
    lines = [
        [
            f"{row.role}{'*' if row.note else ''}",
            *(figure.unit.page(getattr(row, figure.name)) for figure in figures),
        ]
        for row in rows
    ]
    headers = ["role", *(figure.page for figure in figures)]
    table = Table(caption=f"Error of {layer}", headers=headers, lines=lines)
    notes = sorted({row.note for row in rows} - {""})
    lowest = f"{worst.role}, {decibels(worst.sqnr_db)} dB"
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
