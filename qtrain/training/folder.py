"""The folder of a run: what is in it, and when a new run may use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files.plain_json import read
from ..files.whole import LOCK, UNFINISHED, lock, write_atomically
from ..hardware.environment import environment, sessions
from .checkpoint import Checkpoint, load_checkpoint
from .config import TrainConfig
from .given.reference import code_of
from .metrics import check_metrics

#: Every file that a run writes; `overwrite` deletes these and nothing else.
FILES = (
    "checkpoint.pt", "config.json", "environment.json", "metrics.jsonl", "metrics.csv",
    "summary.json", "report.txt", "curves.png", "errors.json", "errors.csv", "errors.png",
    "monitor.jsonl", "monitor.png", "report.html", "updates.json", "diverged.json", "wandb.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """runs/<name>/ of one run."""

    path: Path

    def __truediv__(self, file: str) -> Path:
        return self.path / file

    @property
    def metrics(self) -> Path:
        """The JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, replaced atomically."""
        return self.path / "checkpoint.pt"

    def write_json(self, file: str, content: object) -> None:
        """Write `content` atomically, indented."""
        self.write_text(file, json.dumps(content, indent=2) + "\n")

    def write_text(self, file: str, text: str) -> None:
        """Write `text` atomically."""
        write_atomically(self / file, lambda out: out.write(text.encode()))


def folder_of(config: TrainConfig) -> Path:
    """Where a run lies, or is to lie."""
    return Path(os.path.expanduser(config.runs_dir)) / config.run_name


def make_folder(path: Path, instead: str) -> None:
    """Make a folder and those above it; ValueError, that says what to give instead, where it cannot
    be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"runs_dir and name: {path} cannot be made a folder ({error.strerror or error}); "
            f"give another {instead}"
        ) from error


@contextmanager
def open_run(
    config: TrainConfig, *, say: Callable[[str], None]
) -> Iterator[tuple[RunFolder, Checkpoint | None]]:
    """The run's folder, made where there is none, and the checkpoint to resume from, if any.

    No other process can open the folder meanwhile.  ValueError, with nothing touched, where one
    has, where the folder holds an earlier run and the configuration neither resumes nor overwrites
    it, and where it resumes another configuration.  A run that ends before its first step, or the
    checkpoint it begins at, leaves nothing behind.
    """
    folder = RunFolder(path=folder_of(config))
    new = [path for path in (folder.path, *folder.path.parents) if not os.path.lexists(path)]
    make_folder(folder.path, "--runs-dir or --name")
    with lock(folder.path, say=say):
        places = {name: folder / name for name in FILES}
        odd = [n for n, path in places.items() if os.path.lexists(path) and not path.is_file()]
        if odd:
            raise ValueError(
                f"{folder.path}: {', '.join(odd)} is no file, or a link to none; remove it, or "
                "give another --name"
            )
        stored = _stored(folder, config) if config.resume else None
        if config.resume and stored is None:
            say(f"{folder.path}: no checkpoint to resume from; starting afresh")
        if config.overwrite:
            for path in places.values():
                path.unlink(missing_ok=True)
        elif not config.resume and (folder.metrics.exists() or folder.checkpoint.exists()):
            raise ValueError(
                f"{folder.path}: holds an earlier run; --resume continues it, --name starts "
                "another beside it, --overwrite deletes it"
            )
        for path in folder.path.glob(UNFINISHED):
            path.unlink()
        with _nothing_left(folder, new):
            yield folder, stored


@contextmanager
def _nothing_left(folder: RunFolder, new: Sequence[Path]) -> Iterator[None]:
    """Of an error before the first step; new: the folders that were made, the innermost first."""
    try:
        yield
    except BaseException:
        began = folder.metrics.exists() and folder.metrics.stat().st_size > 0
        if not began and not folder.checkpoint.exists():
            with suppress(OSError):
                for name in (*FILES, *([LOCK] if new else [])):
                    (folder / name).unlink(missing_ok=True)
                for path in new:
                    path.rmdir()
        raise


def _stored(folder: RunFolder, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint, if any; ValueError where it or config.json is of another configuration."""
    stored: Checkpoint | None = None
    earlier: dict[str, Any] | None = None
    if folder.checkpoint.exists():
        stored = load_checkpoint(folder.checkpoint)
        earlier = stored.config
        check_metrics(folder.metrics, stored.metrics_bytes)
    elif (folder / "config.json").exists():
        earlier = read(folder / "config.json", dict)
    sessions(folder / "environment.json")
    differences = [] if earlier is None else config.differences(earlier)
    if differences:
        raise ValueError(
            f"{folder.path}: cannot resume a run with another {', '.join(differences)}; "
            "use the stored values, or --name for another run"
        )
    return stored


def code(config: TrainConfig) -> dict[str, str]:
    """What is to know of the source of the functions that a configuration names, {} of none."""
    found = filter(None, map(code_of, (config.model, config.data, config.optimizer, *config.hooks)))
    text = ", ".join(found)
    return {"code": text} if text else {}


def describe(folder: RunFolder, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Write config.json and environment.json (one entry per session on another machine, or with
    another source of the functions that the configuration names)."""
    folder.write_json("config.json", {**config.to_dict(), "name": config.run_name})
    now = environment(device) | code(config)
    machines = sessions(folder / "environment.json") if config.resume else []
    if now not in machines:
        machines.append(now)
    folder.write_json("environment.json", machines)
    return now
