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
from typing import Any, TypeVar

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
        # strict JSON has no NaN or infinity: they are written as strings
        plain = [
            {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
             for k, v in asdict(row).items()}
            for row in rows
        ]  # fmt: skip
        text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    elif path.suffix == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(field.name for field in fields(kind))
        writer.writerows(map(_cell, asdict(row).values()) for row in rows)
        text = buffer.getvalue()
    else:
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .json or .csv")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


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
    names: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    try:
        lines = parse(read_bytes(path))
        return tuple(
            kind(**{k: _read(v, str(names[k])) for k, v in line.items()}) for line in lines
        )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: holds no rows of {kind.__name__} ({error})") from error


def _read(value: Any, kind: str) -> Any:
    """A field's value: a float of a number, or of how a string spells inf and nan."""
    if kind == "float":
        return float(value)
    if type(value).__name__ != kind:
        raise ValueError(f"got {value!r:.60}, need {kind}")
    return value


def strict(value: object) -> object:
    """Plain data in which numbers that are not finite are strings: strict JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [strict(entry) for entry in value]
    return value
