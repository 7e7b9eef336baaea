"""Rows of a report, as JSON or CSV, and back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .. import checks
from ..files.plain_json import parse
from ..files.whole import read_bytes, write_atomically

_Kind = TypeVar("_Kind")


def save_rows(rows: Sequence[Any], kind: type, path: str | os.PathLike[str]) -> Path:
    """Write rows, dataclasses of one `kind`, to a .json or .csv file, atomically.

    Raises ValueError for other endings.
    """
    path = checks.path("save", path)
    if path.suffix == ".json":
        plain = [strict(asdict(row)) for row in rows]
        text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    elif path.suffix == ".csv":
        return save_table([asdict(row) for row in rows], path, [f.name for f in fields(kind)])
    else:
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .json or .csv")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def save_table(
    lines: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], names: Sequence[str] = ()
) -> Path:
    """Write lines of plain data, of the same `names` (default: the first one's), to a .csv file,
    atomically."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(names or lines[0])
    writer.writerows(map(_cell, line.values()) for line in lines)
    text = buffer.getvalue()
    write_atomically(Path(path), lambda file: file.write(text.encode()))
    return Path(path)


def _cell(value: object) -> object:
    """A value as a cell that no spreadsheet takes for a formula: text that begins like one, and is
    no number, gets an apostrophe in front (OWASP, "CSV Injection")."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def read_rows(path: str | os.PathLike[str], kind: type[_Kind]) -> tuple[_Kind, ...]:
    """The rows of a .json file that `save_rows` wrote; ValueError for another file."""
    kinds = get_type_hints(kind)
    try:
        lines = parse(read_bytes(path))
        return tuple(kind(**{k: typed(k, v, kinds[k]) for k, v in line.items()}) for line in lines)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: holds no rows of {kind.__name__} ({error})") from error


def typed(field: str, value: Any, kind: Any) -> Any:
    """What JSON holds for a field of this type: a float of a number, or of how a string spells inf
    and nan; a tuple of a list.  ValueError for another."""
    if type(value) is kind:
        return value
    if kind is float and isinstance(value, int | str):
        return float(value)
    inner = get_args(kind)
    if isinstance(kind, UnionType):  # with None
        return None if value is None else typed(field, value, inner[0])
    if get_origin(kind) is not tuple or type(value) is not list:
        raise ValueError(f"{field}: got {value!r:.60}, need {getattr(kind, '__name__', kind)}")
    each = inner[:1] * len(value) if inner[-1] is ... else inner
    return tuple(typed(field, entry, own) for entry, own in zip(value, each, strict=True))


def strict(value: object) -> object:
    """Plain data in which numbers that are not finite are strings: strict JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [strict(entry) for entry in value]
    return value
