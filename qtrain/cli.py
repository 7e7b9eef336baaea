"""The command `qtrain`: train, inspect, diagnose, cost, report, recipes, formats."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch

from .arguments import build_parser, train_settings
from .cost_report import CostReport
from .interrupt import Interrupted
from .nonfinite import NonFiniteError
from .report import Report
from .tables import formats_table, recipes_table
from .verdict import Verdict


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
            warnings.showwarning = _show_warning
            return _COMMANDS[parsed.command](parsed)
    except BrokenPipeError:
        raise
    except NonFiniteError as error:
        return _fail(error, 1)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _fail(f"out of memory, use a smaller batch_size: {error}", 1)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how torch says so of the CPU's
            raise
        return _fail(f"out of memory, use a smaller batch_size: {error}", 1)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except Interrupted as error:
        return _fail(error, 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _train(parsed: argparse.Namespace) -> int:
    from .training import train
    from .training_recipes import training_recipe

    try:
        config = training_recipe(parsed.recipe, **train_settings(parsed))
    except TypeError as error:  # a setting of the wrong kind; elsewhere it would be a bug of ours
        return _fail(error, 2)
    result = train(config, say=_say)
    place = result.folder.path
    print(f"\n{result}\n\neverything is in {place}/; as one page: qtrain report {place}")
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from .checkpoint import load_checkpoint
    from .training import inspect_checkpoint

    path = Path(parsed.checkpoint)
    report = inspect_checkpoint(
        load_checkpoint(path), where=str(path), data_dir=parsed.data_dir, device=parsed.device
    )
    print(
        report if parsed.worst is None else replace(report, rows=tuple(report.worst(parsed.worst)))
    )
    _save(report, parsed.save)
    return 0


def _cost(parsed: argparse.Namespace) -> int:
    from .checkpoint import load_checkpoint
    from .training import cost_of_checkpoint

    path = Path(parsed.checkpoint)
    report = cost_of_checkpoint(
        load_checkpoint(path), where=str(path), data_dir=parsed.data_dir, device=parsed.device
    )
    print(report)
    _save(report, parsed.save)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from .page import read_run, save_page
    from .tensorboard import to_tensorboard

    record = read_run(parsed.run)
    run = Path(parsed.run)
    own = run / "report.html" if run.is_dir() else run.with_suffix(".html")
    path = own if parsed.save is None else Path(parsed.save)
    try:
        save_page(record, path)
    except OSError as error:
        raise ValueError(f"save: {path} cannot be written ({error.strerror or error})") from error
    print(path)
    if parsed.tensorboard is not None:
        metrics = [*record.steps, *record.epochs]
        print(to_tensorboard(record.monitor, parsed.tensorboard, metrics=metrics))
    return 0


def _diagnose(parsed: argparse.Namespace) -> int:
    from .diagnosis import diagnose

    verdict = diagnose(parsed.run)
    print(verdict)
    _save(verdict, parsed.save)
    return 0


def _save(report: Report | CostReport | Verdict, path: str | None) -> None:
    if path is None:
        return
    try:
        report.save(path)
    except OSError as error:
        raise ValueError(f"save: {path} cannot be written ({error.strerror or error})") from error


def _recipes(parsed: argparse.Namespace) -> int:
    print(recipes_table())
    return 0


def _formats(parsed: argparse.Namespace) -> int:
    print(formats_table())
    return 0


_COMMANDS = {
    "train": _train,
    "inspect": _inspect,
    "diagnose": _diagnose,
    "cost": _cost,
    "report": _report,
    "recipes": _recipes,
    "formats": _formats,
}


def _say(text: object) -> None:
    print(f"qtrain: {text}", file=sys.stderr, flush=True)


def _fail(error: object, status: int) -> int:
    _say("error: " + " ".join(str(error).split()) if status != 130 else error)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
