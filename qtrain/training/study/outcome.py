"""What became of one run of a study, read from its folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...files.plain_json import read
from ...files.whole import there
from ...reports.rows import read_rows, save_rows, save_table
from ..config import TrainConfig
from ..folder import folder_of
from ..metrics import EPOCH, number
from ..record import read_run
from .plan import METRICS, Job

#: entries of an environment that name the machine of a run
_MACHINE = ("processor", "device", "threads", "torch", "qtrain")
#: the files that a run writes at its end
_ENDS = ("summary.json", "diverged.json")
#: what a curve holds beside the epoch
CURVE = ("train_loss", "test_loss", "test_accuracy")


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One run, whatever became of it, in a line.

    state        "finished", "diverged" (at what was not finite, or to such a test loss),
                 "unfinished", "failed" (by an error of this call) or "not started"
    accuracy, loss   of the test after the last epoch that ended; of a diverged run those of chance,
                 1 / classes and log(classes); NaN before the first
    train_loss   of the same epoch
    epochs       how many ended
    seconds      of its steps and tests
    note         why it diverged or failed
    machine      what it ran on
    path         its folder
    """

    arm: str
    seed: int
    state: str
    accuracy: float = math.nan
    loss: float = math.nan
    train_loss: float = math.nan
    epochs: int = 0
    seconds: float = 0.0
    note: str = ""
    machine: str = ""
    path: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it needs no more steps."""
        return self.state in ("finished", "diverged")


@dataclass(frozen=True, kw_only=True)
class StudyRun(StudyRow):
    """One run, its curve and what hooks measured.

    curve     of each epoch its number (from 1), training loss, test loss and test accuracy
    columns   name and figure of its hooks' columns after the last epoch
    """

    curve: tuple[tuple[int, float, float, float], ...] = field(default=(), repr=False)
    columns: tuple[tuple[str, float], ...] = ()

    def value(self, metric: str) -> float:
        """Its accuracy or loss, or a hook's column: NaN where it has none."""
        if metric in METRICS:
            return float(getattr(self, metric))
        return math.nan if self.state == "diverged" else dict(self.columns).get(metric, math.nan)

    def row(self) -> StudyRow:
        """The run without its curve."""
        return StudyRow(**{name: getattr(self, name) for name in StudyRow.__dataclass_fields__})


def save_runs(runs: Sequence[StudyRun], path: str | os.PathLike[str]) -> Path:
    """Write runs to a .csv, or with their curves to a .json, atomically; ValueError for another
    ending."""
    if Path(path).suffix == ".csv":
        return save_table(table_of(runs), path)
    return save_rows(runs, StudyRun, path)


def table_of(runs: Sequence[StudyRun]) -> list[dict[str, Any]]:
    """Every run in a line of plain data, without its curve: hooks' columns last."""
    columns = dict.fromkeys(name for run in runs for name, _ in run.columns)
    return [
        {**asdict(run.row()), **dict.fromkeys(columns, math.nan), **dict(run.columns)}
        for run in runs
    ]


def read_runs(path: str | os.PathLike[str]) -> tuple[StudyRun, ...]:
    """The runs in a .json file that `save_runs` wrote; ValueError for another file."""
    return read_rows(path, StudyRun)


def has_ended(config: TrainConfig) -> bool:
    """Whether a run needs no more steps, by the files in its folder alone."""
    return any(there(folder_of(config) / file) for file in _ENDS)


def outcome(job: Job) -> StudyRun:
    """What the folder of a run says; ValueError where it holds another run, or is damaged."""
    path = folder_of(job.config)
    known: dict[str, Any] = {"arm": job.arm, "seed": job.seed, "path": str(path)}
    if not there(path / "config.json"):
        return StudyRun(**known, state="not started")
    record = read_run(path)
    if differences := job.config.differences(record.settings):
        raise ValueError(
            f"{path}: holds a run with another {', '.join(differences)}; give the study another "
            f"name, or remove that folder"
        )
    rows = record.epochs
    last: Mapping[str, Any] = rows[-1] if rows else {}
    figures: dict[str, Any] = {
        "accuracy": number(last.get("test_accuracy")), "loss": number(last.get("test_loss")),
        "train_loss": number(last.get("train_loss")),
    }  # fmt: skip
    if record.finished and len(rows) != job.config.epochs:
        raise ValueError(
            f"{path}: a run that ended, but metrics.jsonl has {len(rows)} of its "
            f"{job.config.epochs} epochs; restore it, or remove that folder"
        )
    note = record.diverged
    state = "finished" if record.finished else "unfinished"
    if record.finished and not math.isfinite(figures["loss"]):
        state, note = "diverged", "its test loss is not finite"
    elif note and not record.finished:
        state = "diverged"
    if state == "diverged":
        classes = end_of(path).get("classes")
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(
                f"{path}: a diverged run counts as chance, 1 / classes, but its files say no "
                f"number of classes; restore or remove that folder"
            )
        figures |= {"accuracy": 1 / classes, "loss": math.log(classes)}
    where = record.environments[-1] if record.environments else {}
    return StudyRun(
        **known, **figures, state=state, note=note, epochs=len(rows),
        curve=tuple((row["epoch"], *(number(row[name]) for name in CURVE)) for row in rows),
        seconds=sum(number(row["seconds"]) + row.get("test_seconds", 0.0) for row in rows),
        columns=tuple((n, float(v)) for n, v in last.items() if n not in EPOCH),
        machine=", ".join(f"{name} {where[name]}" for name in _MACHINE if name in where),
    )  # fmt: skip


def end_of(path: Path) -> Mapping[str, Any]:
    """What was written in a run's folder at its end, {} where it has none."""
    files = [path / name for name in _ENDS]
    return next((read(file, dict) for file in files if there(file)), {})
