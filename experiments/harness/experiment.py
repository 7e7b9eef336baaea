"""What an experiment is: its arms, its settings, and the function that does one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.harness.loop import Curve, Setting


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do.

    args     the command line's options
    needed   the file of this seed's run of the arm that this one needs, or None
    kept     where this run may put a file for those that need it
    tick     to call after every epoch
    """

    arm: str
    seed: int
    setting: Setting
    args: argparse.Namespace
    kept: Path
    needed: Path | None = None
    tick: Callable[[], None] = nothing


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms that are compared under one setting.

    arms        name: what it is
    reference   the arm that the others are compared with
    metric      of the curves' rows; its value after the last epoch is the run's result
    paper       {arm: the paper's number}, in the unit that `published` says
    settings    {"here": ..., "paper": ...}
    run         does one run: a function of a module's top level
    needs       {arm: the arm whose file it reads}
    """

    name: str
    arms: Mapping[str, str]
    reference: str
    paper: Mapping[str, float]
    published: str
    settings: Mapping[str, Setting]
    run: Callable[[Job], Curve]
    metric: str = "accuracy"
    needs: Mapping[str, str] | None = None


def options(
    text: str, script: str, *, data: Iterable[str], default: str
) -> argparse.ArgumentParser:
    """The options that every experiment has.

    text     its docstring
    script   its file, beside whose folder `results` the results go there by default
    data     names of data sets
    """
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--scale", choices=("here", "paper"), default="here")
    found.add_argument("--data", default=default, choices=list(data))
    found.add_argument("--data-dir", help="folder of the data set")
    found.add_argument("--cache-dir", help="folder for decoded images")
    found.add_argument("--seeds", type=_count, default=3, help="how many: 0, 1, ...")
    found.add_argument("--jobs", type=_count, default=1, help="runs at a time, each one thread")
    found.add_argument("--epochs", type=_count, help="in place of the setting's")
    found.add_argument("--batch", type=_count, help="in place of the setting's")
    found.add_argument(
        "--mix-machines",
        action="store_true",
        help="add to runs of another processor; each run then names its own",
    )
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    results = Path(script).parent / "results"
    found.add_argument("--output", type=Path, default=results, help="folder of the results")
    return found


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, need at least 1")
    return value
