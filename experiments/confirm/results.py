"""The runs that were done so far, a file a study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from experiments.confirm.studies import STUDIES
from qtrain import StudyRun, read_runs, save_runs

FOLDER = Path(__file__).parent / "results"


def stored(name: str, folder: Path = FOLDER) -> tuple[StudyRun, ...]:
    """The runs of a study that are kept, in order; () where there are none."""
    path = folder / f"{name}.json"
    return read_runs(path) if path.exists() else ()


def merged(name: str, runs: Iterable[StudyRun], folder: Path = FOLDER) -> None:
    """Add runs that ended to those that are kept; of an arm and a seed the first stays."""
    known = {(run.arm, run.seed): run for run in stored(name, folder)}
    for run in runs:
        if run.has_ended:
            known.setdefault((run.arm, run.seed), replace(run, path=""))
    order = list(STUDIES[name].arms)
    found = sorted(known.values(), key=lambda run: (run.seed, order.index(run.arm)))
    if found:
        folder.mkdir(exist_ok=True)
        save_runs(found, folder / f"{name}.json")
