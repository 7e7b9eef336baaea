"""A study as one HTML page, and the other files of its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import date
from pathlib import Path

from ...files.whole import there, write_atomically
from ...reports.numbers import count
from ...reports.page.shell import Section, page, part, save
from ...reports.table import Table
from ...version import VERSION
from ..config import TrainConfig, default_of
from .declared import FILE
from .outcome import StudyRun
from .results import StudyResult

#: settings that every run of every study has
_OF_STUDY = ("baseline", "runs_dir", "resume", "name", "seed")


def save_page(result: StudyResult, path: str | os.PathLike[str]) -> Path:
    """Write the page atomically; ValueError for a path that does not end in .html."""
    lead = part("text", ["", result.title(), "."])
    return save(page(result.plan.name, lead, _sections(result)), path)


def page_in(folder: str | os.PathLike[str], *flags: object) -> Path | None:
    """The page in a study's folder, None where the folder is none; ValueError where it is not
    written yet, and where flags are given (not None), which are for a run's page."""
    path = Path(folder) / "report.html"
    if not there(path.parent / FILE):
        return None
    if not there(path):
        raise ValueError(f"{folder}: a study without a page yet: qtrain study goes on and makes it")
    if any(flag is not None for flag in flags):
        raise ValueError(f"{folder}: a study, whose page is {path}; flags are for a run's")
    return path


def publish(result: StudyResult) -> None:
    """Write report.txt, runs.json, runs.csv, study.png and report.html into the study's folder;
    OSError where they cannot be."""
    folder = result.plan.place
    text = f"{result}\n".encode()
    try:
        write_atomically(folder / "report.txt", lambda file: file.write(text))
        for name in ("runs.json", "runs.csv"):
            result.save(folder / name)
        result.plot(folder / "study.png")
        save_page(result, folder / "report.html")
    except OSError as error:
        raise OSError(
            f"{folder}: the study's files cannot be written ({error.strerror or error}); its runs "
            f"are kept: make room, then the same call writes them"
        ) from error


def _sections(result: StudyResult) -> Iterator[Section | None]:
    verdicts = [
        [f"{arm} (exploratory): {told}"] if arm in result.exploratory else ["", arm, f": {told}"]
        for arm, told in result.verdicts.items()
    ]
    body = part("items", verdicts) + part("table", _differences_first(result.table()))
    yield Section(
        id="verdicts", title="Verdicts", body=body + part("items", [[n] for n in result.notes()])
    )
    yield _curves(result)
    yield _runs(result)
    yield _settings(result)
    yield _machines(result)


def _differences_first(table: Table) -> Table:
    """Where a narrow screen shows them."""
    first, *figures, gap, interval = zip(table.headers, *table.lines, strict=True)
    headers, *lines = zip(first, gap, interval, *figures, strict=True)
    return replace(table, headers=headers, lines=lines)


def _curves(result: StudyResult) -> Section:
    keys = {f"arm{i % 8}": arm.name for i, arm in enumerate(result.plan.arms)}
    body = part("keys", keys) + part("charts", result.panels())
    return Section(id="curves", title="Curves", body=body)


def _runs(result: StudyResult) -> Section:
    headers = ["run", "state", "accuracy", "loss", "training loss", "epochs", "seconds"]
    lines = [_line(run) for run in result.runs]
    table = Table(caption="Every run", headers=headers, lines=lines, words=["state"])
    return Section(id="runs", title="Runs", body=part("table", table))


def _line(run: StudyRun) -> list[str]:
    figures = [f"{value:.4f}" for value in (run.accuracy, run.loss, run.train_loss)]
    name = f"{run.arm}, seed {run.seed}"
    return [name, run.state, *figures, f"{run.epochs}", f"{run.seconds:.1f}"]


def _settings(result: StudyResult) -> Section:
    """Of every arm what is not the default."""
    arms = result.plan.arms
    lines = []
    for option in (one for one in fields(TrainConfig) if one.name not in _OF_STUDY):
        values = [getattr(arm.config, option.name) for arm in arms]
        if any(value != default_of(option) for value in values):
            lines.append([option.name, *("none" if v in (None, ()) else str(v) for v in values)])
    headers = ["setting", *(arm.name for arm in arms)]
    table = Table(caption="What is not the default", headers=headers, lines=lines, kind="words")
    return Section(id="settings", title="Settings", body=part("table", table))


def _machines(result: StudyResult) -> Section:
    """On what and by what it ran, and when the page was made."""
    machines = Counter(run.machine for run in result.runs if run.machine)
    lines = [["", count(runs, "run"), f": {machine}"] for machine, runs in machines.items()]
    made = f"Page of {date.today().isoformat()}, by qtrain {VERSION}."
    return Section(id="machines", title="Machines", body=part("items", [*lines, [made]]))
