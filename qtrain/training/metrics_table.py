"""The metrics as a table of comma-separated values."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..files.whole import write_atomically
from .metrics import read_metrics


def save_table(metrics: Path, path: Path) -> None:
    """Write the steps and epochs of a metrics file to a .csv, atomically: a line each, a column a
    figure; empty where a kind has none, nan for what was not finite."""
    lines = [line for line in read_metrics(metrics) if line["kind"] in ("step", "epoch")]
    text = io.StringIO(newline="")
    columns = dict.fromkeys(name for line in lines for name in line)
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({n: "nan" if v is None else v for n, v in line.items()} for line in lines)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
