"""What a finished run found: the curves, the gap, the errors, as tables and files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ..diagnosis.diagnose import diagnose, updates_of
from ..diagnosis.verdict import Verdict
from ..inspection.monitor import Monitor
from ..inspection.report import Report
from ..reports.plots import plot
from .config import TrainConfig
from .curves import epoch_panels, epoch_table
from .folder import RunFolder
from .intervals import Interval

#: How many of a verdict's findings a run ends with.
WORST = 5


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run; print it for the tables.

    epochs    lines of the metrics file of kind "epoch", in order: epoch (from 1), branch,
              train_loss, test_loss, test_accuracy, seconds
    labels    branch key ("baseline", "quantized") to the name in tables, in order
    models    branch key to the trained model
    gap       accuracy of the quantized model minus the baseline's; None without a baseline
    report    the per-layer numeric error on one training batch; None where nothing is quantized
    monitor   the numeric error over the run; None where it was not recorded
    data      `DataSet.fingerprint`;  classes: how many it has
    """

    config: TrainConfig
    folder: RunFolder
    epochs: list[dict[str, Any]]
    labels: dict[str, str]
    models: dict[str, nn.Module]
    gap: Interval | None
    report: Report | None
    monitor: Monitor | None = None
    data: str = ""
    classes: int = 0

    @cached_property
    def verdict(self) -> Verdict | None:
        """What is wrong with the run, by the monitor's record and that of updates in low precision;
        None where there is neither."""
        recorded = self.monitor is not None or updates_of(self.folder.path) is not None
        return diagnose(self.folder.path) if recorded else None

    @property
    def accuracy(self) -> dict[str, float]:
        """Branch key to the test accuracy after the last epoch."""
        return {line["branch"]: line["test_accuracy"] for line in self.epochs}

    @property
    def seconds(self) -> dict[str, float]:
        """Branch key to the seconds of all training steps, without evaluation."""
        return {
            key: sum(line["seconds"] for line in self.epochs if line["branch"] == key)
            for key in self.labels
        }

    def curves_table(self) -> str:
        """One row per epoch: training loss, test loss and test accuracy of each model."""
        return epoch_table(self.epochs, self.labels).text()

    def gap_line(self) -> str:
        """The accuracy gap in words, or the accuracy alone."""
        if self.gap is None:
            return f"test accuracy of {self.labels['quantized']}: {self.accuracy['quantized']:.4f}"
        names = f"{self.labels['quantized']} - {self.labels['baseline']}"
        return (
            f"accuracy gap, {names}: {self.gap}\n"
            f"(95 % interval, {self.gap.method}, n = {self.gap.n})"
        )

    def __str__(self) -> str:
        parts = [self.curves_table(), self.gap_line()]
        if self.report is not None:
            later = self.config.quantizations().items()[1:]
            under = f", under {later[-1][1].name}" if later else ""
            text = f"numeric error of each layer on one training batch{under}"
            text += " (more in errors.csv, .png):"
            parts.insert(0, f"{text}\n{self.report.overview()}")
        if self.monitor is not None:
            parts.append(
                f"numeric error over the run, every {self.monitor.every} steps: monitor.jsonl, .png"
            )
        if self.verdict is not None:
            found = self.verdict.findings
            parts.append(str(replace(self.verdict, findings=found[:WORST])))
            if len(found) > WORST:
                parts.append(f"{len(found) - WORST} more: qtrain diagnose")
        return "\n\n".join(parts)

    def text(self) -> str:
        """What prints, and after it every row of the numeric error: the file report.txt."""
        return f"{self}\n" if self.report is None else f"{self}\n\n{self.report.table()}\n"

    def summary(self) -> Mapping[str, Any]:
        """The end of the run as plain data."""
        return {
            "name": self.config.run_name,
            "recipe": str(self.config.quantization()),
            **self._switches(),
            "accuracy": self.accuracy,
            "gap": None if self.gap is None else asdict(self.gap),
            "data": self.data,
            "classes": self.classes,
            "load": _load(),
            "train_seconds": {key: round(value, 2) for key, value in self.seconds.items()},
        }

    def _switches(self) -> dict[str, Any]:
        later = self.config.quantizations().items()[1:]
        return {"switches": {f"{when:g}": str(recipe) for when, recipe in later}} if later else {}

    def save(self) -> None:
        """Write summary.json, report.txt, the plots, and errors.json and errors.csv."""
        self.folder.write_json("summary.json", self.summary())
        self.folder.write_text("report.txt", self.text())
        plot(epoch_panels(self.epochs, self.labels), self.folder / "curves.png")
        if self.report is not None:
            self.report.save(self.folder / "errors.json")
            self.report.save(self.folder / "errors.csv")
            self.report.plot(self.folder / "errors.png")
        if self.monitor is not None:
            self.monitor.save(self.folder / "monitor.jsonl")
            self.monitor.plot(self.folder / "monitor.png")


def _load() -> list[float] | None:
    """Processes that want a core, of the last minute, and how many cores there are."""
    try:
        return [round(os.getloadavg()[0], 2), os.cpu_count() or 1]
    except (AttributeError, OSError):  # a system that does not tell
        return None
