"""The command `qtrain`, and its sub-commands."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from . import checks
from .cli_arguments import build_parser, formats_table, recipes_table, train_settings
from .files import terminal
from .training.interrupt import Interrupted
from .training.nonfinite import NonFiniteError


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
    from .training.named import training_recipe
    from .training.train import train

    try:
        config = training_recipe(parsed.recipe, **train_settings(parsed))
    except TypeError as error:  # a setting of the wrong kind; elsewhere it would be a bug of ours
        return _fail(error, 2)
    result = train(config, say=_say)
    place = result.folder.path
    terminal.show(f"\n{result}\n\neverything is in {place}/; as one page: qtrain report {place}")
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from .inspection.accumulated import accumulated
    from .inspection.inspect import inspect
    from .training.checkpoint import load_checkpoint
    from .training.train import inspect_checkpoint

    path = Path(parsed.checkpoint)
    report = inspect_checkpoint(
        load_checkpoint(path),
        where=str(path),
        data_dir=parsed.data_dir,
        device=parsed.device,
        measure=accumulated if parsed.accumulated else inspect,
    )
    terminal.show(report.table(parsed.worst))
    _write("save", parsed.save, report.save)
    if parsed.plot is not None:
        _write("plot", parsed.plot, report.plot)
    return 0


def _cost(parsed: argparse.Namespace) -> int:
    from .training.checkpoint import load_checkpoint
    from .training.train import cost_of_checkpoint

    path = Path(parsed.checkpoint)
    report = cost_of_checkpoint(
        load_checkpoint(path), where=str(path), data_dir=parsed.data_dir, device=parsed.device
    )
    terminal.show(report)
    _write("save", parsed.save, report.save)
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from .training.compare import compare

    found = compare(parsed.run_a, parsed.run_b)
    terminal.show(found)
    _write("save", parsed.save, found.save)
    _write("plot", parsed.plot, found.plot)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from .inspection.tensorboard import to_tensorboard
    from .training.page import save_page
    from .training.record import read_run

    record = read_run(parsed.run)
    run = Path(parsed.run)
    own = run / "report.html" if run.is_dir() else run.with_suffix(".html")
    path = own if parsed.save is None else Path(parsed.save)
    _write("save", str(path), partial(save_page, record))
    terminal.show(path)
    if parsed.tensorboard is not None:
        metrics = [*record.steps, *record.epochs]
        terminal.show(to_tensorboard(record.monitor, parsed.tensorboard, metrics=metrics))
    return 0


def _diagnose(parsed: argparse.Namespace) -> int:
    from .diagnosis.diagnose import diagnose

    verdict = diagnose(parsed.run)
    terminal.show(verdict)
    _write("save", parsed.save, verdict.save)
    return 0


def _sensitivity(parsed: argparse.Namespace) -> int:
    from .training.checkpoint import load_checkpoint
    from .training.train import sensitivity_of_checkpoint

    if parsed.worst is not None:  # before minutes of work
        checks.integer("worst", parsed.worst, low=1)
    path = Path(parsed.checkpoint)
    report = sensitivity_of_checkpoint(
        load_checkpoint(path), where=str(path), by=parsed.by, data_dir=parsed.data_dir,
        device=parsed.device,
    )  # fmt: skip
    terminal.show(report.table(parsed.worst))
    _write("save", parsed.save, report.save)
    return 0


def _write(field: str, path: str | None, write: Callable[[Path], object]) -> None:
    """What `field` asks for, if anything; ValueError where the path cannot be written."""
    if path is None:
        return
    try:
        write(Path(path))
    except OSError as error:
        message = f"{field}: {path} cannot be written ({error.strerror or error})"
        raise ValueError(message) from error


def _recipes(parsed: argparse.Namespace) -> int:
    terminal.show(recipes_table())
    return 0


def _formats(parsed: argparse.Namespace) -> int:
    terminal.show(formats_table())
    return 0


_COMMANDS = {
    "train": _train,
    "inspect": _inspect,
    "diagnose": _diagnose,
    "cost": _cost,
    "compare": _compare,
    "report": _report,
    "sensitivity": _sensitivity,
    "recipes": _recipes,
    "formats": _formats,
}


def _say(text: object) -> None:
    terminal.say(f"qtrain: {text}")


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
