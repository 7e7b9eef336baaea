"""A row for each model of a library, in a file that is written after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from qtrain import environment

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def collect(
    library: str,
    file: str,
    names: Sequence[str],
    row: Callable[[str], Row],
    table: Callable[[str, dict[str, Row]], str],
    again: Callable[[str], bool] = lambda name: False,
) -> None:
    """Write results/<file>.json after each row, going on where it stopped, and the table, .md, at
    the end; again: whether a row that is there is to be made anew."""
    path = RESULTS / f"{file}.json"
    rows: dict[str, Row] = json.loads(path.read_text())["models"] if path.exists() else {}
    version = import_module(library).__version__
    for name in tqdm(names, desc=f"{library}'s models", disable=None):
        if name not in rows or again(name):
            rows[name] = row(name)
            result = {
                "library": version,
                "environment": environment(torch.device("cpu")),
                "models": rows,
            }
            text = json.dumps(result, indent=1) + "\n"
            whole = path.with_suffix(".tmp")  # so that the file is never half written
            whole.write_text(text, encoding="utf-8")
            whole.replace(path)
    text = table(library, {name: rows[name] for name in names})
    (RESULTS / f"{file}.md").write_text(text, encoding="utf-8")
    print(text)


def said(error: BaseException) -> str:
    """An error as a row says it, in a line."""
    return f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]:.160}"
