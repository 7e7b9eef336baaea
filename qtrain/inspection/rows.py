"""The rows of a Monitor, and their file: JSON lines, a header first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from .. import checks
from ..files import plain_json
from ..files.whole import read_bytes, write_atomically
from ..reports.heat import Heat, heat_of
from ..reports.rows import strict, typed
from .figures import FIGURES
from .row import Row


@dataclass(frozen=True, kw_only=True)
class MonitorRow(Row):
    """The error of one tensor of one layer at one training step.

    step     the steps that were done before it
    layer, role, ..., gain   as in `Row`, over the elements that were looked at; the fraction that
             is not finite is nonfinite / elements; of grad_weight, gain is the bias along the
             update
    values   how many values of x lie in each of 97 bins: see `distributions.value_counts`
    codes    how many codes lie in each of up to 256 bins: see `distributions.code_counts`; () for a
             product and for what is not quantized
    scale    (smallest, median, largest) scale of all granules; None where there is none
    drift    the median scale in units of that at the layer's record before; None for the first
    offset, offset_error, spread, reach   the rounding in steps: see `Rounded`
    shared, shared_error   the correlation of the rounding's noise along `axis`, where it is
             largest, and its standard error: see `shared_noise`; a weight is (groups, out, in,
             *kernel)
    outlier, crowded   the largest channel's peak in units of the median channel's, and what the
             largest channels' scale takes of the others' power: see `channels`
    update   the mean |change| of a weight by this step, in units of its quantization step; None for
             what is no parameter, or was not written to (by another optimizer, later)
    oscillation   which fraction of some 256 weights went to and fro between two neighbouring codes
             over the layer's last 8 records: see `weight_watch.oscillation`

    What a role has not is None: of products, of tensors that are not quantized, or to values whose
    offset is real, which lie in no steps.
    """

    step: int
    values: tuple[int, ...] = ()
    codes: tuple[int, ...] = ()
    scale: tuple[float, float, float] | None = None
    drift: float | None = None
    offset: float | None = None
    offset_error: float | None = None
    spread: float | None = None
    reach: float | None = None
    shared: float | None = None
    shared_error: float | None = None
    axis: int | None = None
    outlier: float | None = None
    crowded: float | None = None
    update: float | None = None
    oscillation: float | None = None

    def error(self) -> Row:
        """The row of a `Report`."""
        return Row(**{f.name: getattr(self, f.name) for f in fields(Row)})


#: Of every field, in the order of a line: its type.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("step", "layer", "role", *(figure.name for figure in FIGURES))),
    **get_type_hints(MonitorRow),
}
#: Of an older record too: a figure that came later has a default.
_NEEDED = {field.name for field in fields(MonitorRow) if field.default is MISSING}


def dumped(rows: Sequence[MonitorRow]) -> str:
    """One line of strict JSON a row; NaN and infinities are written as strings."""
    return "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)


def parsed(text: str) -> list[MonitorRow]:
    """The rows that `dumped` wrote, bit for bit; ValueError for other text."""
    return [_row(plain_json.parse(line)) for line in text.splitlines()]


def _plain(row: MonitorRow) -> dict[str, Any]:
    counts = {"values": row.values, "codes": row.codes}  # integers, and many
    return {n: counts[n] if n in counts else strict(getattr(row, n)) for n in _KINDS}


def _row(line: object) -> MonitorRow:
    if not isinstance(line, dict) or not _NEEDED <= line.keys() <= _KINDS.keys():
        raise ValueError(f"no row of a monitor: {line!r:.60}")
    return MonitorRow(**{name: typed(name, value, _KINDS[name]) for name, value in line.items()})


def save_rows(path: Path, header: Mapping[str, Any], rows: Sequence[MonitorRow]) -> None:
    """Write the header and the rows atomically, each with a checksum (see `plain_json`), the
    header with their number; ValueError for a path of another ending."""
    if path.suffix != ".jsonl":
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .jsonl")
    text, checksum = [], 0
    for values in ({**header, "rows": len(rows)}, *map(_plain, rows)):
        line, checksum = plain_json.line(values, checksum)
        text.append(line)
    write_atomically(path, lambda file: file.writelines(text))


def read_monitor(path: str | os.PathLike[str]) -> list[MonitorRow]:
    """The rows of a file that `Monitor.save` wrote; ValueError for another file."""
    path = checks.path("path", path)
    try:
        (header, *rows), _ = plain_json.lines(read_bytes(path) or b"null")
        if not isinstance(header, dict) or header.get("kind") != "monitor":
            raise ValueError("no header")
        if header.get("rows", len(rows)) != len(rows):
            raise ValueError(f"{len(rows)} rows, but the header says {header['rows']!r:.20}")
        return [_row(line) for line in rows]
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no record of a Monitor ({error})") from error


def heats(
    rows: Sequence[MonitorRow], layers: Sequence[str], roles: Sequence[str], most: int | None = None
) -> list[Heat]:
    """SQNR by step of these layers, a map a role, each of `most` columns at most, the last one
    that of the last record."""
    steps = sorted({row.step for row in rows})
    every = -(-len(steps) // (most or len(steps)))
    steps = steps[::-every][::-1]
    return [
        heat_of(
            role, layers, steps,
            [(row.step, row.layer, row.sqnr_db) for row in rows if row.role == role],
        )
        for role in roles
    ]  # fmt: skip
