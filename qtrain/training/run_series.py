"""What a run of `qtrain train` wrote down: configuration, versions, metrics, monitored errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import checks
from ..files import checked_lines
from ..files.plain_json import parse
from ..files.whole import read_bytes, there
from ..inspection.rows import monitor_lines
from .metrics import is_metrics, number

#: Files without which a folder is no run.
NEEDED = ("config.json", "environment.json", "metrics.jsonl")

#: (step, value) in the order of steps.
Series = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class RunSeries:
    """A run as its folder tells it, for another to be laid beside: whatever fields it has.

    path          the folder
    config        config.json
    environment   of each entry every value it had: of several where the run was resumed elsewhere
    losses, norms   branch ("baseline", "quantized") -> training loss and gradient norm of the
                  steps that were logged; NaN where it was not finite
    epochs        branch -> the lines of its epochs
    errors        (layer, role) -> SQNR in dB of the monitored steps; {} where none was monitored
    tests         how many test samples or windows the accuracy is of; None where the run has not
                  ended or trained no baseline
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, tuple[str, ...]]
    losses: Mapping[str, Series]
    norms: Mapping[str, Series]
    epochs: Mapping[str, list[dict[str, Any]]]
    errors: Mapping[tuple[str, str], Series] = field(default_factory=dict)
    tests: int | None = None

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.name)


def read_series(path: str | os.PathLike[str]) -> RunSeries:
    """The record of the run in a folder; ValueError where that holds none, or a damaged one."""
    folder = checks.path("run", path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise ValueError(f"{folder}: {what}; give the folder of a run, runs/<name>")
    missing = [name for name in NEEDED if not there(folder / name)]
    if missing:
        raise ValueError(
            f"{folder}: is no run: {', '.join(missing)} missing; give a folder that qtrain train "
            f"wrote, runs/<name>"
        )
    losses: dict[str, Series] = {}
    norms: dict[str, Series] = {}
    epochs: dict[str, list[dict[str, Any]]] = {}
    for line in _lines(folder / "metrics.jsonl", _all, "kind"):
        if not is_metrics(line):
            raise ValueError(f"{folder / 'metrics.jsonl'}: is damaged: {line!r:.80}")
        if line["kind"] == "epoch":
            epochs.setdefault(line["branch"], []).append(line)
        elif line["kind"] == "step":
            for series, key in ((losses, "loss"), (norms, "grad_norm")):
                series.setdefault(line["branch"], []).append((line["step"], number(line[key])))
    return RunSeries(
        path=folder,
        config=_mapping(folder / "config.json"),
        environment=_environment(folder / "environment.json"),
        losses=losses,
        norms=norms,
        epochs=epochs,
        errors=_errors(folder / "monitor.jsonl"),
        tests=_tests(folder / "summary.json"),
    )


def _json(path: Path) -> Any:
    try:
        return parse(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: no JSON") from error


def _mapping(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is damaged: holds no JSON object")
    return content


def _environment(path: Path) -> dict[str, tuple[str, ...]]:
    sessions = _json(path)
    if not isinstance(sessions, list) or not all(isinstance(one, dict) for one in sessions):
        raise ValueError(f"{path}: is damaged: holds no list of environments")
    names = dict.fromkeys(name for session in sessions for name in session)
    return {
        name: tuple(dict.fromkeys(str(session.get(name)) for session in sessions)) for name in names
    }


def _lines(path: Path, found: Callable[[Path], list[Any]], key: str) -> list[dict[str, Any]]:
    """What `found` reads of the file, JSON objects, those that have `key`."""
    try:
        lines = found(path)
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path}: is damaged: a line of it is no JSON object")
    return [line for line in lines if key in line]


def _all(path: Path) -> list[Any]:
    return checked_lines.lines(read_bytes(path))[0]


def _errors(path: Path) -> dict[tuple[str, str], Series]:
    if not there(path):
        return {}
    errors: dict[tuple[str, str], Series] = {}
    for line in _lines(path, monitor_lines, "sqnr_db"):
        try:
            key = str(line["layer"]), str(line["role"])
            errors.setdefault(key, []).append((int(line["step"]), number(line["sqnr_db"])))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: is damaged: {line!r:.80}") from error
    return errors


def _tests(path: Path) -> int | None:
    if not there(path):
        return None
    gap = _mapping(path).get("gap")
    count = gap.get("n") if isinstance(gap, dict) else None
    return count if isinstance(count, int) and count > 0 else None
