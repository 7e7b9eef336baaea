"""Events for TensorBoard (an optional package) while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...inspection.rows import MonitorRow
from ...inspection.tensorboard import add_metrics, add_row, writer_of
from .logger import Logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Logger):
    """Writes runs/<name>/tensorboard/<branch>: `tensorboard --logdir runs` shows it, as what
    `to_tensorboard` writes; each line is there within 10 seconds.

    A resumed run purges what a killed one had written later than its checkpoint; one that begins
    anew deletes the events that are there.
    """

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self._folder, self._step = folder / "tensorboard", step
        self._writers: dict[str, SummaryWriter] = {}
        if step == 0:
            for old in self._folder.rglob("events.out.tfevents.*"):
                old.unlink()

    def log(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "monitor":
            row = {name: value for name, value in line.items() if name not in ("kind", "branch")}
            add_row(self._writer(line["branch"]), MonitorRow(**row))
        elif line["kind"] != "recipe":  # a text, which TensorBoard does not purge
            add_metrics(self._writer(line["branch"]), line)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, branch: str) -> SummaryWriter:
        if branch not in self._writers:
            made = writer_of(self._folder / branch, purge_step=self._step or None, flush_secs=10)
            self._writers[branch] = made
        return self._writers[branch]
