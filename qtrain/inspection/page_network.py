"""The network at a glance: one cell a layer and role, coloured by its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..reports.numbers import count, decibels
from ..reports.page.shell import Section, part
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
    layers, roles = layers_of(rows), roles_of(rows)
    text = (
        f"SQNR in dB of {count(len(layers), 'layer')} in network order, measured on {measured}: "
        "how far each tensor lies above its own error; higher is better. Errors are local: what a "
        "layer passes on is not counted against the next."
    )
    names = [f"{low:g} to {high:g}" for high, low in pairwise(LEVELS[:-1])]
    names = [f"{LEVELS[0]:g} and more", *names, f"below {LEVELS[-2]:g}"]
    legend = [*((f"h{i}", name) for i, name in enumerate(names)), ("nan", "NaN")]
    body = (
        part("text", [text]) + part("legend", legend) + part("strip", layers, roles, _paths(rows))
    )
    return Section(id="network", title="Network", body=body)


def _values(rows: Sequence[Row]) -> list[list[float | None]]:
    """The SQNR of each layer's roles; None for a role that a layer lacks."""
    found = {(row.layer, row.role): row.sqnr_db for row in rows}
    roles = roles_of(rows)
    return [[found.get((layer, role)) for role in roles] for layer in layers_of(rows)]


def _paths(rows: Sequence[Row]) -> dict[str, str]:
    """Columns of layers and lines of roles, as one path a colour."""
    paths: dict[str, str] = {}
    for x, line in enumerate(_values(rows)):
        for y, value in enumerate(line):
            if value is not None:
                kind = level(value)
                paths[kind] = paths.get(kind, "") + f"M{x} {y}h1v1h-1z"
    return paths


def heat(rows: Sequence[Row]) -> str:
    """Search and order, and one line a layer and one cell a role: its colour and its value."""
    cells = [
        [("", "") if value is None else (level(value), decibels(value)) for value in line]
        for line in _values(rows)
    ]
    return part("heat", layers_of(rows), roles_of(rows), cells)
