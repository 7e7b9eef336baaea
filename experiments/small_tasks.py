"""Two small tasks that one CPU has time for, and what studies on them share.

digits   a ResNet of three stages on 8 x 8 digits, by SGD; test accuracy
text     a Transformer of one layer that predicts the next character of a part of any text, its
         attention quantized too, by AdamW; test loss in nats

An experiment says its studies as arguments of `qtrain.study`, by name, and hands them to `main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate
from torch import nn

from experiments.readme import insert
from qtrain import Difference, StudyRun, data, differences, models, read_runs, save_runs, study

#: What `qtrain.study` is called with, the first recipe the baseline.
Study = Mapping[str, Any]
#: Of an experiment's table: headers, and of a study and an arm what stands below them.
More = tuple[Sequence[str], Callable[[str, str], Sequence[str]]]

TRAIN, TEST = 100_000, 30_000  # characters of `passage`


def resnet8(num_classes: int, in_channels: int) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes): stages of one block, 16, 32 and 64 channels."""
    return models.ResNet(
        models.BasicBlock, (1, 1, 1), num_classes=num_classes, in_channels=in_channels, width=16,
        stem="cifar", shortcut="padding",
    )  # fmt: skip


def transformer(num_classes: int, context: int) -> nn.Module:
    """(N, context) characters -> (N, context, num_classes): one layer of width 64, four heads."""
    return models.CharTransformer(
        num_classes=num_classes, context=context, width=64, depth=1, heads=4
    )


def passage(data_dir: str) -> data.DataSet:
    """The beginning of both parts of any text, in windows of 64 characters."""
    whole = data.load("text", data_dir=data_dir, context=64)
    train, test = whole.train, whole.test
    return replace(
        whole,
        train=replace(train, tokens=train.tokens[:TRAIN]),
        test=replace(test, tokens=test.tokens[:TEST]),
    )


def digits(recipes: Mapping[str, Any], *, seeds: int, margin: float, **config: Any) -> Study:
    """A study of recipes on digits; config: in place of a run's settings here."""
    own = {"epochs": 3, "batch_size": 32, "lr": 0.05, "weight_decay": 5e-4, "threads": 1}
    return {
        "model": "experiments.small_tasks:resnet8", "recipes": recipes, "seeds": seeds,
        "margin": margin, "config": own | config,
    }  # fmt: skip


def text(recipes: Mapping[str, Any], *, seeds: int, margin: float, **config: Any) -> Study:
    """A study of recipes on text; config: in place of a run's settings here."""
    own = {
        "epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 4e-3, "weight_decay": 0.1,
        "clip_grad": 1.0, "threads": 1,
    }  # fmt: skip
    return {
        "model": "experiments.small_tasks:transformer", "recipes": recipes, "seeds": seeds,
        "margin": margin, "config": own | config, "data": "experiments.small_tasks:passage",
        "metric": "loss",
    }  # fmt: skip


def main(
    studies: Mapping[str, Study],
    script: str,
    *,
    more: More | None = None,
    arguments: list[str] | None = None,
) -> None:
    """An experiment's command: run its studies, keep their runs and figures in results/ beside the
    script, and put the table into the README there."""
    folder = Path(script).parent
    command = f"python -m experiments.{folder.name}.{Path(script).stem}"
    parser = argparse.ArgumentParser(prog=command)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(studies)}; default: all")
    parser.add_argument("--data-dir", help="a text: a file, or a folder of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", help="start only runs that end within it: 90s, 8m")
    parser.add_argument("--runs-dir", default="runs/small")
    parser.add_argument("--table", action="store_true", help="the table alone, of runs kept")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.studies if name not in studies]:
        parser.error(f"got {unknown[0]!r}, need studies of {', '.join(studies)}")
    results = folder / "results"
    results.mkdir(exist_ok=True)
    for name in () if args.table else args.studies or studies:
        own = dict(studies[name])
        if "data" in own:
            own["config"] = {**own["config"], "data_dir": args.data_dir}
        found = study(
            **own, name=f"{folder.name}-{name}", runs_dir=args.runs_dir, jobs=args.jobs,
            budget=args.budget,
        )  # fmt: skip
        print(found)
        ended = [replace(run, path="") for run in found.runs if run.has_ended]
        save_runs(ended, results / f"{name}.json")
        found.plot(results / f"{name}.svg")
    insert(tables(studies, results, more), folder / "README.md")


def tables(studies: Mapping[str, Study], results: Path, more: More | None = None) -> str:
    """Markdown, of each study's runs that are kept: a row an arm, with its mean, n, difference to
    the baseline and its 95 % interval, and the study's verdict."""
    parts = []
    for name, own in studies.items():
        path = results / f"{name}.json"
        found = read_runs(path) if path.exists() else ()
        parts.append(_table(name, own, found, more) if found else f"{name}: not run yet.")
    return "\n\n".join(parts)


def judged(own: Study, runs: Sequence[StudyRun]) -> dict[str, Difference]:
    """Of each arm of two runs and more its difference to the baseline, as the study has it."""
    known = {arm: found for arm in own["recipes"] if len(found := values(own, runs, arm)) > 1}
    arms = own.get("primary", list(own["recipes"]))
    found = differences.differences(
        known, next(iter(own["recipes"])), own["margin"],
        primary=[arm for arm in arms if arm in known],
        diverged=[run.arm for run in runs if run.state == "diverged"],
    )  # fmt: skip
    return {one.arm: one for one in found}


def values(own: Study, runs: Sequence[StudyRun], arm: str) -> dict[int, float]:
    """Seed -> the study's metric of the arm's runs; of diverged ones that of chance."""
    metric = own.get("metric", "accuracy")
    return {run.seed: getattr(run, metric) for run in runs if run.arm == arm}


def _table(name: str, own: Study, runs: Sequence[StudyRun], more: More | None) -> str:
    found, rows = judged(own, runs), []
    for arm in own["recipes"]:
        known = values(own, runs, arm).values()
        lost = sum(run.arm == arm and run.state == "diverged" for run in runs)
        count = f"{len(known)}" + (f", {lost} diverged" if lost else "")
        row = [arm, f"{fmean(known):.4f}" if known else "-", count, "", ""]
        if gap := found.get(arm):
            d = gap.interval
            row[3:] = [f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]", gap.verdict]
        rows.append([*row, *(more[1](name, arm) if more else ())])
    metric, baseline = own.get("metric", "accuracy"), next(iter(own["recipes"]))
    headers = [name, metric, "n", f"minus {baseline}, 95 % interval", "verdict"]
    machines = "; ".join(dict.fromkeys(run.machine for run in runs))
    head = (
        f"{name}: test {metric} after epoch {own['config']['epochs']}, margin {own['margin']:g}; "
        f"{machines}."
    )
    headers += more[0] if more else ()
    return f"{head}\n\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}"
