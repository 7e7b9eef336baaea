"""Rows of a report, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .files import write_atomically


def save_rows(rows: Sequence[Any], kind: type, path: str | os.PathLike[str]) -> Path:
    """Write rows, dataclasses of one `kind`, to a .json or .csv file, atomically.

    Raises ValueError for other endings.
    """
    path = Path(path)
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
        writer.writerows(asdict(row).values() for row in rows)
        text = buffer.getvalue()
    else:
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .json or .csv")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
