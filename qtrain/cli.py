"""The command `qtrain`, and its sub-commands."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from . import checks
from .cli_arguments import build_parser
from .cli_tables import formats_table, recipe_page, recipes_table, run_line
from .diagnosis.diagnose import diagnose
from .diagnosis.recommend import recommend
from .diagnosis.sensitivity import sensitivity
from .files import terminal
from .hardware.cost import cost
from .hardware.doctor import doctor
from .inspection.inspect import accumulated, inspect
from .inspection.tensorboard import to_tensorboard
from .recipe_file import find, save_recipe
from .training.compare import compare
from .training.demo.demo import demo
from .training.flags import train_settings
from .training.interrupt import Interrupted
from .training.named import TRAINING_RECIPES, training_recipe
from .training.nonfinite import NonFiniteError
from .training.page import save_page
from .training.record import read_run
from .training.study.file import study_of
from .training.study.page import page_in
from .training.train import restored, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 failed run, 2 bad input, 130 interrupted.

    141, as the system has it, where nobody reads the output to its end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # else Python complains when it flushes them
            os.dup2(nothing, stream.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    try:
        parsed = build_parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
            return _COMMANDS[parsed.command](parsed) or 0
    except BrokenPipeError:
        raise
    except NonFiniteError as error:
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):  # torch of the CPU's
            raise
        return _fail(f"out of memory, use a smaller batch_size: {error}", 1)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except Interrupted as error:
        return _fail(error, 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _train(parsed: argparse.Namespace) -> None:
    try:
        config = training_recipe(parsed.recipe, **train_settings(parsed))
    except TypeError as error:  # a setting of the wrong kind; elsewhere it would be a bug of ours
        raise ValueError(error) from error
    result = train(config, say=_say)
    place = result.folder.path
    terminal.show(f"\n{result}\n\neverything is in {place}/: report.html is the page")


def _demo(parsed: argparse.Namespace) -> None:
    story = demo(**_given(parsed, "seed", "runs_dir", "threads"), say=_say)
    terminal.show(f"\n{story}\n\nthe page is {story.path}")


def _given(parsed: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {n: getattr(parsed, n) for n in names if getattr(parsed, n) is not None}


def _study(parsed: argparse.Namespace) -> int:
    said = _given(parsed, "seeds", "jobs", "executor", "budget", "runs_dir")
    result = study_of(parsed.study, **said, say=_say)
    terminal.show(f"\n{result}\n\neverything is in {result.plan.place}/: report.html is the page")
    return 1 if result.failed else 0


def _inspect(parsed: argparse.Namespace) -> None:
    measure = accumulated if parsed.accumulated else inspect
    with _restored(parsed) as (model, inputs, targets):
        report = measure(model, inputs, targets)
    _give(parsed, report.table(parsed.worst), report.save, report.plot)


def _cost(parsed: argparse.Namespace) -> None:
    with _restored(parsed) as (model, inputs, _):
        report = cost(model, inputs)
    _give(parsed, report, report.save)


def _sensitivity(parsed: argparse.Namespace) -> None:
    if parsed.worst is not None:  # before minutes of work
        checks.integer("worst", parsed.worst, low=1)
    with _restored(parsed) as (model, inputs, targets):
        report = sensitivity(model, inputs, targets, by=parsed.by)
    _give(parsed, report.table(parsed.worst), report.save)


def _recommend(parsed: argparse.Namespace) -> None:
    to = int(parsed.to) if parsed.to is not None and parsed.to.isdecimal() else parsed.to
    asked: dict[str, Any] = {"by": parsed.by, "to": to, "each": parsed.each}
    with _restored(parsed) as (model, inputs, targets):
        blame = sensitivity(model, inputs, targets, by=parsed.by)
        batch: dict[str, Any] = {"model": model, "inputs": inputs, "targets": targets}
        found = recommend(blame, parsed.cosine, **asked, **batch)
    terminal.show(found)
    if parsed.save is not None and (found.overrides or found.recipe is None):
        raise ValueError(
            "save: single layers have recipes of their own, and a file has one; they are given in "
            " Python, quantize(model, overrides=found.overrides)"
        )
    if found.recipe is not None:
        _write("save", parsed.save, partial(save_recipe, found.recipe))


def _restored(parsed: argparse.Namespace) -> AbstractContextManager[tuple[Module, Tensor, Tensor]]:
    path = Path(getattr(parsed, "run", None) or parsed.checkpoint)
    path = path / "checkpoint.pt" if path.is_dir() else path
    names = ("model", "data", "data_dir", "device")
    return restored(path, **{name: getattr(parsed, name) for name in names})


def _compare(parsed: argparse.Namespace) -> None:
    found = compare(parsed.run_a, parsed.run_b)
    _give(parsed, found, found.save, found.plot)


def _report(parsed: argparse.Namespace) -> None:
    if (page := page_in(parsed.run, parsed.save, parsed.tensorboard)) is not None:
        return terminal.show(page)
    record = read_run(parsed.run)
    run = Path(parsed.run)
    own = run / "report.html" if run.is_dir() else run.with_suffix(".html")
    path = own if parsed.save is None else Path(parsed.save)
    _write("save", str(path), partial(save_page, record))
    terminal.show(path)
    if parsed.tensorboard is not None:
        metrics = [*record.steps, *record.epochs]
        terminal.show(to_tensorboard(record.monitor, parsed.tensorboard, metrics=metrics))


def _diagnose(parsed: argparse.Namespace) -> None:
    if parsed.gradient:
        with _restored(parsed) as (model, inputs, targets):
            verdict = diagnose(parsed.run, model=model, inputs=inputs, targets=targets)
    else:
        for name in ("model", "data", "data_dir"):
            if (got := getattr(parsed, name)) is not None:
                raise ValueError(f"{name}: got {got!r}, but no --gradient to use it")
        verdict = diagnose(parsed.run)
    _give(parsed, verdict, verdict.save)


def _recipes(parsed: argparse.Namespace) -> None:
    if parsed.recipe is None:
        if parsed.save is not None:
            raise ValueError("save: say which recipe, qtrain recipes mxfp8 --save mine.yaml")
        terminal.show(recipes_table())
        return
    run = TRAINING_RECIPES.get(parsed.recipe)
    if run is not None:
        terminal.show(run_line(parsed.recipe) + "\n")
    recipe = find(parsed.recipe if run is None else run["recipe"])
    terminal.show(recipe_page(recipe))
    _write("save", parsed.save, partial(save_recipe, recipe))


def _give(
    parsed: argparse.Namespace,
    found: object,
    save: Callable[[Path], object],
    plot: Callable[[Path], object] | None = None,
) -> None:
    """Show what was found, and write the files that are asked for."""
    terminal.show(found)
    _write("save", parsed.save, save)
    if plot is not None:
        _write("plot", parsed.plot, plot)


def _write(field: str, path: str | None, write: Callable[[Path], object]) -> None:
    """What `field` asks for, if anything; ValueError where the path cannot be written."""
    if path is None:
        return
    try:
        write(Path(path))
    except OSError as error:
        message = f"{field}: {path} cannot be written ({error.strerror or error})"
        raise ValueError(message) from error
    terminal.say(f"wrote {path}")


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train, "demo": _demo, "study": _study, "inspect": _inspect, "diagnose": _diagnose,
    "cost": _cost, "compare": _compare, "report": _report, "sensitivity": _sensitivity,
    "recommend": _recommend, "doctor": lambda parsed: terminal.show(doctor()),
    "recipes": _recipes, "formats": lambda parsed: terminal.show(formats_table()),
}  # fmt: skip


def _say(text: object) -> None:
    terminal.say(f"qtrain: {text}")


def _fail(error: object, status: int) -> int:
    _say("error: " + " ".join(str(error).split()) if status != 130 else error)
    return status


if __name__ == "__main__":
    sys.exit(main())
