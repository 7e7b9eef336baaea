"""What is known of a run, read from its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from ..files.plain_json import read
from ..files.whole import there
from ..hardware.environment import sessions
from ..inspection.report import Report
from ..inspection.row import ROLES, Row
from ..inspection.rows import MonitorRow, read_monitor
from ..reports.rows import read_rows, typed
from .config import TrainConfig
from .intervals import Interval
from .metrics import check_metrics, number, read_metrics

_LATEST = "the last record of each layer"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, or of a plain inspection its errors alone.

    name          the run's;  errors: of every layer and role, and measured: on what
    path          its folder
    settings      config.json as it is, whatever fields it has; {} where the errors are of no run
    environments  of each session on another machine, the oldest first: see `environment`
    finished      whether the run came to its end
    diverged      why it stopped at what was not finite, "" where it did not
    accuracy      branch key ("baseline", "quantized") to test accuracy;  gap: their difference
    load          at its end: processes that wanted a core in the last minute, and how many cores
    steps, epochs lines of the metrics, by kind;  monitor: the records over the run
    """

    name: str
    errors: Report
    measured: str
    path: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environments: Sequence[Mapping[str, str]] = ()
    finished: bool = True
    diverged: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    gap: Interval | None = None
    load: tuple[float, int] | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    epochs: Sequence[Mapping[str, Any]] = ()
    monitor: Sequence[MonitorRow] = ()

    @cached_property
    def config(self) -> TrainConfig | None:
        """The settings, None without; ValueError for what this version does not know or take."""
        try:
            return TrainConfig.from_dict(self.settings) if self.settings else None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path / 'config.json'}: is refused: {error}") from error

    @property
    def labels(self) -> dict[str, str]:
        """Branch key to its name, the baseline first."""
        if self.config is None:
            return {}
        quantized = {"quantized": self.config.label}
        return {"baseline": "full precision", **quantized} if self.config.baseline else quantized


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """The run in a folder that `qtrain train` wrote, at its end or on its way there; or what is
    known of one from the file that a Monitor saved.

    ValueError where there is none, or a file is damaged.
    """
    folder = Path(path)
    if folder.suffix == ".jsonl" and folder.is_file():
        monitor = read_monitor(folder)
        return RunRecord(
            name=folder.stem, errors=_latest(monitor), measured=_LATEST, monitor=monitor
        )
    if not there(folder / "config.json"):
        raise ValueError(
            f"{folder}: holds no run; give a folder that qtrain train wrote, such as runs/NAME, or "
            "a .jsonl file that a Monitor saved"
        )
    settings = read(folder / "config.json", dict)
    if not settings:
        raise ValueError(f"{folder / 'config.json'}: holds no setting; restore or delete it")
    recorded = folder / "monitor.jsonl"
    monitor = read_monitor(recorded) if there(recorded) else []
    errors, measured = _latest(monitor), _LATEST
    if there(folder / "errors.json"):
        errors = Report(read_rows(folder / "errors.json", Row))
        measured = "one training batch after the last step"
    finished = there(folder / "summary.json")
    summary = read(folder / "summary.json", dict) if finished else {}
    diverged = folder / "diverged.json"
    lines = folder / "metrics.jsonl"
    if there(lines):
        check_metrics(lines, lines.stat().st_size)
    metrics = read_metrics(lines) if there(lines) else []
    epochs = [line for line in metrics if line["kind"] == "epoch"]
    return RunRecord(
        name=str(settings.get("name") or folder.name),
        errors=errors,
        measured=measured,
        path=folder,
        settings=settings,
        environments=sessions(folder / "environment.json"),
        finished=finished,
        diverged=str(read(diverged, dict).get("message")) if there(diverged) else "",
        accuracy={line["branch"]: number(line["test_accuracy"]) for line in epochs},
        gap=_gap(folder / "summary.json", summary.get("gap")),
        load=_load(folder / "summary.json", summary.get("load")),
        steps=[line for line in metrics if line["kind"] == "step"],
        epochs=epochs,
        monitor=monitor,
    )


def _latest(monitor: Sequence[MonitorRow]) -> Report:
    """Of each layer and role the last record; layers as they are first seen, which is the network's
    order, and roles as ever."""
    last = {(row.layer, row.role): row.error() for row in monitor}
    layers = dict.fromkeys(layer for layer, _ in last)
    keys = [(layer, role) for layer in layers for role in ROLES]
    return Report(tuple(last[key] for key in keys if key in last))


def _load(path: Path, values: Any) -> tuple[float, int] | None:
    try:
        if values is None:
            return None
        load, cores = values
        return typed("load", load, float), typed("cores", cores, int)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its load is no two numbers; restore or delete it") from error


def _gap(path: Path, values: Any) -> Interval | None:
    kinds = get_type_hints(Interval)
    try:
        if values is None:
            return None
        return Interval(**{name: typed(name, values[name], kinds[name]) for name in values})
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: its gap is no interval; restore or delete it") from error
