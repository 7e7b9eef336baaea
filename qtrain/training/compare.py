"""compare: what differs between two runs of `qtrain train`, and where they part."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from .. import checks
from ..files.whole import write_atomically
from ..reports.rows import save_rows, strict
from .comparison_text import comparison_text
from .parting import LossParting, cut_db, error_parting, loss_parting
from .plots import Panel, plot_two
from .run_series import RunSeries, read_series

#: What must be equal for two runs to see the same samples in the same order.
SAMPLES = ("data", "image_size", "context", "batch_size", "seed")
#: What must be equal for two test accuracies to be of the same test.
TESTS = ("data", "image_size", "context")


@dataclass(frozen=True, kw_only=True)
class ErrorPair:
    """The monitored SQNR of one layer and role in both runs, in dB.

    a, b         medians over the records; NaN where a run has none.  An infinite one (no error) is
                 cut at 200, one that is not finite counts as -200
    difference   b - a
    parts        the first recorded step at which one leaves the other's band: see `error_parting`
    records      how many records are in a and in b
    """

    layer: str
    role: str
    a: float
    b: float
    difference: float
    parts: int | None
    records: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The test accuracies of one branch after the last epoch that both runs finished.

    gap      b - a
    margin   half of its 95 % interval, as of two independent tests; None where the number of test
             samples is not recorded.  Both runs take the same test, so the true one is narrower
    """

    epoch: int
    a: float
    b: float
    gap: float
    margin: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side: print it, `save` it, `plot` it.

    settings     field of the configuration -> (A's value, B's) where they differ
    versions     entry of the environment -> (A's, B's) where they differ
    same_samples whether both train on the same samples in the same order, by their configurations
    losses       branch that both trained -> where its losses part
    accuracy     the same branches -> final accuracies; {} where the test data differ
    errors       of the layers and roles that either run monitored, the largest difference first;
                 what one run alone has comes last
    """

    a: RunSeries
    b: RunSeries
    settings: Mapping[str, tuple[object, object]]
    versions: Mapping[str, tuple[str, str]]
    same_samples: bool
    losses: Mapping[str, LossParting]
    accuracy: Mapping[str, Accuracy]
    errors: tuple[ErrorPair, ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a .json file, or the errors to a .csv, atomically.

        ValueError for other endings.
        """
        path = Path(path)
        if path.suffix != ".json":
            return save_rows(self.errors, ErrorPair, path)
        content = {
            "a": str(self.a.path),
            "b": str(self.b.path),
            "settings": self.settings,
            "versions": self.versions,
            "same_samples": self.same_samples,
            "losses": {branch: asdict(loss) for branch, loss in self.losses.items()},
            "accuracy": {branch: asdict(own) for branch, own in self.accuracy.items()},
            "errors": [asdict(pair) for pair in self.errors],
        }
        text = json.dumps(strict(content), indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def plot(self, path: str | os.PathLike[str], *, rows: int = 6) -> None:
        """Both loss curves, and the SQNRs of the `rows` worst layers and roles, to a PNG or SVG."""
        checks.integer("rows", rows, low=1)
        panels = [
            Panel(f"training loss, {branch}", "loss", self.a.losses[branch], self.b.losses[branch],
                  loss.parts)
            for branch, loss in self.losses.items()
        ]  # fmt: skip
        panels += [
            Panel(f"{pair.layer}\n{pair.role}", "SQNR in dB", self.a.errors[pair.layer, pair.role],
                  self.b.errors[pair.layer, pair.role], pair.parts)
            for pair in [p for p in self.errors if not math.isnan(p.difference)][:rows]
        ]  # fmt: skip
        if not panels:
            raise ValueError("plot: the two runs have no branch and no monitored layer in common")
        plot_two((self.a.name, self.b.name), panels, Path(path))

    def __str__(self) -> str:
        return comparison_text(self)


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Two runs of `qtrain train`, by their folders: what differs, and where they part.

    Read are config.json, environment.json and metrics.jsonl, and, where there, monitor.jsonl and
    summary.json; the runs need not have ended.  ValueError where a folder is no run, or damaged.
    """
    one, two = read_series(a), read_series(b)
    branches = [branch for branch in one.losses if branch in two.losses]
    same_test = all(one.config.get(name) == two.config.get(name) for name in TESTS)
    return Comparison(
        a=one,
        b=two,
        settings={
            name: (one.config.get(name), two.config.get(name))
            for name in dict.fromkeys([*one.config, *two.config])
            if name != "name" and one.config.get(name) != two.config.get(name)
        },
        versions={
            name: (_said(one.environment.get(name)), _said(two.environment.get(name)))
            for name in dict.fromkeys([*one.environment, *two.environment])
            if one.environment.get(name) != two.environment.get(name)
        },
        same_samples=all(one.config.get(name) == two.config.get(name) for name in SAMPLES),
        losses={
            branch: loss_parting(
                (one.losses[branch], two.losses[branch]), (one.norms[branch], two.norms[branch])
            )
            for branch in branches
        },
        accuracy=_accuracies(one, two) if same_test else {},
        errors=_errors(one, two),
    )


def _said(values: tuple[str, ...] | None) -> str:
    return "not recorded" if values is None else ", then ".join(values)


def _accuracies(one: RunSeries, two: RunSeries) -> dict[str, Accuracy]:
    found = {}
    for branch in one.epochs:
        a, b = (
            {line["epoch"]: line["test_accuracy"] for line in run.epochs.get(branch, [])}
            for run in (one, two)
        )
        common = [e for e in a if e in b and a[e] is not None and b[e] is not None]
        if not common:
            continue
        last = max(common)
        counts = [n for n in (one.tests, two.tests) if n]
        margin = None
        if counts:
            variance = sum(p * (1 - p) for p in (a[last], b[last])) / counts[0]
            margin = 1.96 * math.sqrt(variance)
        found[branch] = Accuracy(
            epoch=last, a=a[last], b=b[last], gap=b[last] - a[last], margin=margin
        )
    return found


def _errors(one: RunSeries, two: RunSeries) -> tuple[ErrorPair, ...]:
    pairs = []
    for layer, role in dict.fromkeys([*one.errors, *two.errors]):
        series = [run.errors.get((layer, role), []) for run in (one, two)]
        a, b = (median(cut_db(v) for _, v in own) if own else math.nan for own in series)
        pairs.append(
            ErrorPair(
                layer=layer,
                role=role,
                a=a,
                b=b,
                difference=b - a,
                parts=error_parting(*series),
                records=(len(series[0]), len(series[1])),
            )
        )
    return tuple(
        sorted(pairs, key=lambda p: math.inf if math.isnan(p.difference) else -abs(p.difference))
    )
