"""The folder of a run: what is in it, and when a new run may use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, CheckpointError, load_checkpoint
from .config import TrainConfig
from .environment import environment
from .files import write_atomically

#: Every file that a run writes; `overwrite` deletes these and nothing else.
FILES = (
    "checkpoint.pt", "checkpoint.pt.tmp", "config.json", "environment.json", "metrics.jsonl",
    "summary.json", "report.txt", "curves.png", "errors.json", "errors.csv", "errors.png",
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


def open_run(
    config: TrainConfig, *, say: Callable[[str], None]
) -> tuple[RunFolder, Checkpoint | None]:
    """The run's folder, made where there is none, and the checkpoint to resume from, if any.

    ValueError, with nothing touched, where the folder holds an earlier run and the configuration
    neither resumes nor overwrites it, or resumes another configuration.
    """
    folder = RunFolder(path=Path(config.runs_dir) / config.run_name)
    present = [name for name in FILES if (folder / name).exists()]
    stored = _stored(folder, config) if config.resume else None
    if config.overwrite:
        for name in present:
            (folder / name).unlink()
    elif config.resume:
        if stored is None:
            say(f"{folder.path}: no checkpoint to resume from; starting afresh")
    elif folder.metrics.exists() or folder.checkpoint.exists():
        raise ValueError(
            f"{folder.path}: holds an earlier run; --resume continues it, --name starts "
            "another beside it, --overwrite deletes it"
        )
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path}: is a file, need a folder; give another --name")
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder, stored


def _stored(folder: RunFolder, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint, if any; ValueError where it or config.json is of another configuration."""
    stored, earlier = None, None
    if folder.checkpoint.exists():
        stored = load_checkpoint(folder.checkpoint)
        earlier = stored.config
    elif (folder / "config.json").exists():
        try:
            earlier = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{folder / 'config.json'}: is no JSON") from error
    if not isinstance(earlier, dict | None):
        raise CheckpointError(f"{folder / 'config.json'}: holds no configuration")
    differences = config.differences(earlier) if earlier is not None else []
    if differences:
        raise ValueError(
            f"{folder.path}: cannot resume a run with another {', '.join(differences)}; "
            "use the stored values, or --name for another run"
        )
    return stored


def describe(folder: RunFolder, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Write config.json and environment.json (one entry per session on another machine)."""
    folder.write_json("config.json", {**config.to_dict(), "name": config.run_name})
    now = environment(device)
    sessions: list[dict[str, str]] = []
    if config.resume and (folder / "environment.json").exists():
        sessions = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    if now not in sessions:
        sessions.append(now)
    folder.write_json("environment.json", sessions)
    return now
