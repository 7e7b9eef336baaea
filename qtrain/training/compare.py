"""compare: what differs between two runs of `qtrain train`, and from which step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..files.terminal import printable
from ..files.whole import there, write_atomically
from ..reports.plots import Line, Panel, plot
from ..reports.rows import save_rows, strict
from . import pairs
from .comparison_text import accuracies_text, errors_text, losses_text, settings_text
from .record import RunRecord, read_run

if TYPE_CHECKING:
    from ..reports.plots import Axes, Figure, Place

#: Files without which a folder is no run to compare.
NEEDED = ("config.json", "environment.json", "metrics.jsonl")
#: What must be equal for two runs to see the same samples in the same order.
SAMPLES = ("data", "image_size", "context", "batch_size", "seed")
#: What must be equal for two test accuracies to be of the same test.
TESTS = ("data", "image_size", "context")
#: Of an entry of the environment that one run lacks.
_UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side: print it, `save` it, `plot` it.

    settings     field of the configuration -> (A's value, B's) where they differ
    versions     entry of the environment -> (A's, B's) where they differ
    same_samples whether both train on the same samples in the same order, by their configurations
    losses       branch that both trained -> the first step at which they differ
    accuracy     the same branches -> final accuracies; {} where the test data differ
    errors       of the layers and roles that either run monitored, the largest difference first;
                 what one run alone has comes last
    """

    a: RunRecord
    b: RunRecord
    settings: Mapping[str, tuple[object, object]]
    versions: Mapping[str, tuple[str, str]]
    same_samples: bool
    losses: Mapping[str, pairs.Losses]
    accuracy: Mapping[str, pairs.Accuracy]
    errors: tuple[pairs.ErrorPair, ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a .json file, or the errors to a .csv, atomically.

        ValueError for other endings.
        """
        path = Path(path)
        if path.suffix != ".json":
            return save_rows(self.errors, pairs.ErrorPair, path)
        nothing: Any = None  # runs are named by their folders
        found = asdict(replace(self, a=nothing, b=nothing))
        content = {**found, "a": str(self.a.path), "b": str(self.b.path)}
        text = json.dumps(strict(content), indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def plot(self, path: Place = None, *, ax: Axes | None = None, rows: int = 6) -> Figure:
        """Both loss curves, and the SQNRs of the `rows` worst layers and roles (0: none); to a PNG
        or SVG where a path is given, into `ax` where one is and there is one panel."""
        checks.integer("rows", rows, low=0)
        runs = self.a, self.b
        names = [f"{letter}: {run.name}" for letter, run in zip("AB", runs, strict=True)]

        def panel(title: str, unit: str, *both: pairs.Series) -> Panel:
            lines = [
                Line(label=name, points=series, marks=len(series) < 30)
                for name, series in zip(names, both, strict=True)
            ]
            return Panel(title=title, unit=unit, x="step", lines=lines)

        panels = [
            panel(
                f"training loss, {branch}", "loss", *(pairs.loss_curve(run, branch) for run in runs)
            )
            for branch in self.losses
        ]
        a, b = map(pairs.sqnrs, runs)
        worst = [p for p in self.errors if not math.isnan(p.difference)][:rows]
        panels += [
            panel(f"{p.layer}\n{p.role}", "SQNR in dB", a[p.layer, p.role], b[p.layer, p.role])
            for p in worst
        ]
        if not panels:
            raise ValueError("plot: the two runs have no branch and no monitored layer in common")
        return plot(panels, path, ax=ax)

    def __str__(self) -> str:
        places = (("A", self.a.path), ("B", self.b.path))
        parts = [
            "\n".join(f"{run}  {printable(path, keep='')}" for run, path in places),
            settings_text(self.settings, self.versions, self.same_samples),
            losses_text(self.losses),
            *([accuracies_text(self.accuracy)] if self.accuracy else []),
            errors_text(self.errors),
        ]
        return printable("\n\n".join(parts))


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Two runs of `qtrain train`, by their folders: what differs, and from which step.

    The runs need not have ended.  ValueError where a folder is no run, or a file in it damaged.
    """
    one, two = _run(a), _run(b)

    def same(names: tuple[str, ...]) -> bool:
        return all(one.settings.get(name) == two.settings.get(name) for name in names)

    versions = _versions(one), _versions(two)
    return Comparison(
        a=one,
        b=two,
        settings={
            name: (one.settings.get(name), two.settings.get(name))
            for name in dict.fromkeys([*one.settings, *two.settings])
            if name != "name" and not same((name,))
        },
        versions={
            name: (versions[0].get(name, _UNKNOWN), versions[1].get(name, _UNKNOWN))
            for name in dict.fromkeys([*versions[0], *versions[1]])
            if versions[0].get(name) != versions[1].get(name)
        },
        same_samples=same(SAMPLES),
        losses=pairs.losses(one, two),
        accuracy=pairs.accuracies(one, two) if same(TESTS) else {},
        errors=pairs.errors(one, two),
    )


def _run(path: str | os.PathLike[str]) -> RunRecord:
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
    return read_run(folder)


def _versions(run: RunRecord) -> dict[str, str]:
    """Of each entry of the environment every value it had: of several where the run was resumed
    elsewhere."""
    sessions = run.environments
    return {
        name: ", then ".join(dict.fromkeys(str(session.get(name)) for session in sessions))
        for name in dict.fromkeys(name for session in sessions for name in session)
    }
