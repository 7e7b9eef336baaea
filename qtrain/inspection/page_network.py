"""The network at a glance: one cell a layer and role, coloured by its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..reports.page.html import count, decibels, esc, name
from ..reports.page.shell import Section
from .row import Row, layers_of, roles_of

#: Each colour's lowest SQNR in dB, the best first: a bit is worth some 6 dB.
LEVELS = (40.0, 30.0, 20.0, 15.0, 10.0, 5.0, -math.inf)


def level(sqnr_db: float) -> str:
    """The class of a cell: h0 (best) to h6, or nan."""
    if math.isnan(sqnr_db):
        return "nan"
    return f"h{next(i for i, low in enumerate(LEVELS) if sqnr_db >= low)}"


def network_section(rows: Sequence[Row], measured: str) -> Section | None:
    """A strip of the whole network; measured: on what its errors were."""
    if not rows:
        return None
    layers = count(len(layers_of(rows)), "layer")
    return Section(
        id="network",
        title="Network",
        body=(
            f"<p>SQNR in dB of {layers} in network order, measured on {esc(measured)}: how far "
            "each tensor lies above its own error; higher is better. Errors are local: what a "
            "layer passes on is not counted against the next."
            f"</p>\n{_legend()}{_strip(rows)}"
        ),
    )


def _legend() -> str:
    names = [f"{LEVELS[0]:g} and more"]
    names += [f"{low:g} to {high:g}" for high, low in pairwise(LEVELS[:-1])]
    names.append(f"below {LEVELS[-2]:g}")
    keys = [(f"h{i}", name) for i, name in enumerate(names)] + [("nan", "NaN")]
    items = "".join(f'<li class="{kind}">{name}</li>' for kind, name in keys)
    return f'<ul class="legend" aria-label="Colours: SQNR in dB">{items}</ul>\n'


def _values(rows: Sequence[Row]) -> list[list[float | None]]:
    """The SQNR of each layer's roles; None for a role that a layer lacks."""
    found = {(row.layer, row.role): row.sqnr_db for row in rows}
    roles = roles_of(rows)
    return [[found.get((layer, role)) for role in roles] for layer in layers_of(rows)]


def _strip(rows: Sequence[Row]) -> str:
    """Columns of layers and lines of roles, as one path a colour."""
    paths: dict[str, str] = {}
    for x, line in enumerate(_values(rows)):
        for y, value in enumerate(line):
            if value is not None:
                kind = level(value)
                paths[kind] = paths.get(kind, "") + f"M{x} {y}h1v1h-1z"
    roles, layers = roles_of(rows), layers_of(rows)
    drawn = "".join(f'<path class="{kind}" d="{paths[kind]}"/>' for kind in sorted(paths))
    names = "".join(f"<li>{esc(role)}</li>" for role in roles)
    return (
        f'<div class="strip"><ul aria-hidden="true">{names}</ul>'
        f'<svg role="img" viewBox="0 0 {len(layers)} {len(roles)}" height="{16 * len(roles)}" '
        'preserveAspectRatio="none">'
        f"<title>SQNR of the whole network</title><desc>Layers from left to right, "
        f"{esc(layers[0])} to {esc(layers[-1])}; roles from top to bottom: "
        f"{esc(', '.join(roles))}. The table of layers holds the values.</desc>{drawn}</svg>"
        f'<p aria-hidden="true"><span>{esc(layers[0])}</span><span>{esc(layers[-1])}</span></p>'
        "</div>\n"
    )


def heat_controls(rows: Sequence[Row]) -> str:
    """Search and order, for the script: without it they stay hidden."""
    return (
        '<form class="controls" hidden><label>Search layers <input type="search" id="filter" '
        'autocomplete="off" spellcheck="false"></label>'
        '<label>Order <select id="order"><option value="network">network</option>'
        '<option value="worst">worst first</option></select></label>'
        f'<output id="shown" for="filter">{count(len(layers_of(rows)), "layer")}</output></form>\n'
    )


def heat_table(rows: Sequence[Row]) -> str:
    """One line a layer and one cell a role: its colour and its value."""
    heads = "".join(f'<th scope="col">{_broken(role)}</th>' for role in roles_of(rows))
    lines = "".join(
        f'<tr><th scope="row"><a href="#layer-{i}">{name(layer)}</a></th>'
        f"{''.join(map(_cell, line))}</tr>\n"
        for i, (layer, line) in enumerate(zip(layers_of(rows), _values(rows), strict=True))
    )
    return (
        '<table class="heat" id="heat"><caption>SQNR in dB of each layer and role</caption>'
        f'<thead><tr><th scope="col">layer</th>{heads}</tr></thead>\n<tbody>{lines}</tbody></table>'
    )


def _broken(role: str) -> str:
    """A role that may go on in a second line."""
    first, _, rest = role.partition(" ")
    return f"{esc(first)} <span>{esc(rest)}</span>" if rest else esc(first)


def _cell(value: float | None) -> str:
    if value is None:
        return "<td></td>"
    text, _, decimals = decibels(value).partition(".")
    return f'<td class="{level(value)}">{text}{f"<i>.{decimals}</i>" if decimals else ""}</td>'
