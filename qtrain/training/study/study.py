"""study: recipes compared over seeds by one call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ... import checks
from ...files import terminal
from ..folder import folder_of
from .built import check_arms
from .declared import check_rates, declare
from .execute import execute
from .executors.executor import Executor
from .executors.named import executor_for
from .outcome import StudyRun
from .page import publish
from .planned import planned
from .results import StudyResult
from .stored import check_stored
from .tuning import at_rates, factors_of, tuned, tuning


def study(
    model: Any,
    recipes: Any,
    *,
    seeds: int | Iterable[int] = 5,
    data: Any = "digits",
    config: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    margin: float = 0.01,
    primary: str | Sequence[str] | None = None,
    rates: Iterable[float] | None = None,
    name: str | None = None,
    runs_dir: str = "runs",
    jobs: int = 1,
    executor: Executor | str | Mapping[str, Any] | None = None,
    budget: float | str | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Train a model by every recipe with every seed, and compare them: print the result.

    model      what `train` takes: a name, a reference ("timm:resnet18", "package.module:function"),
               a function that makes one; or a mapping of names to such: all of them
    recipes    name -> a recipe's name or .yaml file, a Recipe or Schedule, None (full precision),
               or a mapping of settings of `qtrain train`, {"recipe": "int8", "lr": 0.01}, a model
               of its own among them; or a list of names
    seeds      how many, 0, 1, ..., or which; all recipes of a seed run before the next seed
    data       what `train` takes: a name, a reference, a DataSet, a pair of torch Datasets
    config     settings of every run, fields of TrainConfig: {"epochs": 20, "lr": 0.1}
    baseline   the recipe that the others are compared with; default: the first
    metric     "accuracy" or "loss", of the test after the last epoch, or a column of a hook that
               every arm has; default: accuracy, of text loss
    margin     what counts as equal, in the metric's unit (0.01: one point of accuracy)
    primary    recipes whose verdicts hold together at 95 % (Holm); default: all
    rates      factors of the learning rate, (0.5, 1, 2), of which each arm takes its best: by two
               runs each of half the epochs, on a tenth of the training samples, held out
    name       the study's folder in `runs_dir`; default: model-data
    jobs       runs at a time, each in a process of its own; 1: in this one
    executor   where runs are done: of `qtrain.executors`, such as Ray(4), in place of jobs; or
               beside jobs a word, "ray", {"slurm": {"timeout_min": 60}}: see `executors.named`
    budget     seconds within which runs are started, only those that are expected to end in time;
               or text, "90s", "8m", "1.5h"
    say        takes lines of progress (default: stderr)

    Margin, metric, primary recipes and baseline are written down before the first run; the result
    says if they were changed later.  Every run lies in a folder, runs/<study>/<recipe>-seed<k>: the
    same call goes on where it was stopped, with more seeds it does those that are new.  A run that
    diverges counts as chance.  Files of the whole beside them: report.html, report.txt, study.png,
    runs.json and runs.csv.

    TypeError or ValueError for what cannot run, Interrupted after Ctrl-C.
    """
    plan = planned(
        model, recipes, seeds=seeds, data=data, config=config, baseline=baseline, metric=metric,
        margin=margin, primary=primary, name=name, runs_dir=runs_dir,
    )  # fmt: skip
    if say is not None:
        checks.function("say", say, "a function of a line of text, or None", "")
    budget, factors = seconds(budget), factors_of(rates)
    at_first = tuning(plan, factors) if factors else plan
    where = executor_for(executor, jobs, len(at_first.jobs()))
    report = say or terminal.say
    check_rates(plan, factors)
    check_stored(at_first, report)
    check_arms(plan)
    declared = declare(plan, factors)
    chosen, began = None, time.monotonic()
    if factors:
        first = execute(at_first, where, budget=budget, say=report)
        chosen = tuned(plan, factors, first)
        if chosen is None:
            raise ValueError(
                f"rates: {sum(not run.has_ended for run in first)} of {len(first)} runs that "
                f"choose them have not ended ({_why(first)}); the same call goes on"
            )
        for job in at_first.jobs():  # which nobody looks into again
            (folder_of(job.config) / "checkpoint.pt").unlink(missing_ok=True)
        plan, budget = at_rates(plan, chosen), budget and budget - (time.monotonic() - began)
        check_stored(plan, report)
    runs = execute(plan, where, budget=budget, say=report)
    result = StudyResult(plan=plan, runs=tuple(runs), declared=declared, tuned=chosen)
    publish(result)
    return result


def seconds(got: object) -> float | None:
    """The seconds of "90", "90s", "8m", "1.5h", or of a number; None of None.  ValueError or
    TypeError for anything else."""
    if isinstance(got, str):
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smh]?)", got.strip())
        if match is None:
            raise ValueError(f"budget: got {checks.shown(got)}, need seconds, or 90s, 8m, 1.5h")
        got = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]
    if got is None:
        return None
    return checks.number("budget", got, low=0, positive=True, hint="seconds; None for no limit")


def _why(runs: Sequence[StudyRun]) -> str:
    return next((run.note for run in runs if run.note and not run.has_ended), "the budget")
