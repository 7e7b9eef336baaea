"""Every layer in detail: what was measured of each role, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.page.html import decibels, esc, name, short, table
from ..reports.page.shell import Section
from .figures import FIGURES
from .page_network import heat_controls, heat_table
from .page_pictures import code_picture, error_picture, value_picture
from .roles import ROLES
from .row import Row, layers_of
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
    parts = "".join(
        _part(i, layer, own, records[layer]) for i, (layer, own) in enumerate(errors.items())
    )
    lead = "Each layer opens to all its figures."
    if monitor:
        lead += (
            " Pictures of its last monitored step show a tensor's values by sign and binade, its "
            "codes from the lowest to the highest (heights are square roots of counts, so that "
            "tails show), and its SQNR by step."
        )
    body = (
        f"<p>{lead}</p>\n{heat_controls(rows)}{heat_table(rows)}"
        f'<div class="parts">\n{parts}</div>\n'
    )
    return Section(id="layers", title="Layers", body=body)


def _part(i: int, layer: str, rows: Sequence[Row], records: Sequence[MonitorRow]) -> str:
    worst = min(rows, key=lambda row: (row.sqnr_db == row.sqnr_db, row.sqnr_db))  # a NaN first
    return (
        f'<details id="layer-{i}"><summary><h3>{name(layer)}</h3> <span>lowest: '
        f"{esc(worst.role)}, {decibels(worst.sqnr_db)} dB</span></summary>"
        f'<div class="body">{_pictures(records)}{_figures(layer, rows)}</div></details>\n'
    )


def _figures(layer: str, rows: Sequence[Row]) -> str:
    figures = [figure for figure in FIGURES if figure.page]
    lines = [
        [
            f"{esc(row.role)}{'*' if row.note else ''}",
            *(figure.unit.page(getattr(row, figure.name)) for figure in figures),
        ]
        for row in rows
    ]
    headers = ["role", *(figure.page for figure in figures)]
    notes = "".join(f"<p>* {esc(note)}</p>" for note in sorted({r.note for r in rows} - {""}))
    return table(f"Error of {layer}", headers, lines) + notes


def _pictures(records: Sequence[MonitorRow]) -> str:
    """Values, codes and error of each role that was monitored."""
    found = []
    for role in ROLES:
        own = [row for row in records if row.role == role]
        if own:
            last = own[-1]
            pictures = [
                value_picture(last.values),
                code_picture(last.codes) if last.codes else "",
                error_picture([(row.step, row.sqnr_db) for row in own]),
            ]
            found.append(
                f"<figure><figcaption><b>{esc(role)}</b> step {last.step}{_scale(last)}"
                f"</figcaption>{''.join(pictures)}</figure>\n"
            )
    if not found:
        return ""
    return f'<div class="figures">{"".join(found)}</div>'


def _scale(row: MonitorRow) -> str:
    if row.scale is None:
        return ""
    low, median, high = row.scale
    text = short(median) if low == high else f"{short(low)}, {short(median)}, {short(high)}"
    return f" · scale {text}"
