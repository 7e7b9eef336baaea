"""What a run or a Monitor recorded, as events for TensorBoard (an optional package)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from .distributions import HIGHEST, LOWEST, VALUE_BINS
from .figures import FIGURES, MONITORED
from .rows import MonitorRow

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: What lines of the metrics hold beside a run's figures.
_KEYS = ("kind", "step", "epoch", "branch")


def to_tensorboard(
    rows: Sequence[MonitorRow],
    folder: str | os.PathLike[str],
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write events that `tensorboard --logdir FOLDER` shows, one of its runs a model.

    rows      `Monitor.rows`, or `read_monitor(path)`: each figure as a scalar "sqnr_db/LAYER/ROLE",
              and values and codes as histograms, of the run "quantized"
    metrics   lines of a run's metrics (`read_metrics(path)`): each number as a scalar, of the run
              that is called as the model ("baseline", "quantized")

    Every event is at its training step, an epoch's at its last.  A histogram of values has the
    bins of `value_counts`; one of codes the number of the bin, of `code_counts`, on its axis.  NaN
    and infinities are written as such; a metric that was not finite is a NaN.

    Raises ValueError for a folder that holds events already (they would show twice), where there is
    nothing to write, and where the package is not installed.
    """
    folder = checks.path("folder", folder)
    for field, lines, kind in (("rows", rows, MonitorRow), ("metrics", metrics, Mapping)):
        if not isinstance(lines, Sequence) or not all(isinstance(line, kind) for line in lines):
            checks.refuse(field, lines, f"a list of {kind.__name__}s")
    if not rows and not metrics:
        raise ValueError(
            "tensorboard: nothing is recorded; train with --monitor N, or give a Monitor's rows "
            "after its first step has ended"
        )
    if any(folder.rglob("events.out.tfevents.*")):
        raise ValueError(
            f"tensorboard: {folder} holds events already, which would show beside these; give "
            "another folder, or delete that one"
        )
    branches = dict.fromkeys([*(line["branch"] for line in metrics), "quantized"])
    for branch in branches:
        if not branch.isidentifier():  # it becomes the name of a folder
            raise ValueError(f"tensorboard: got a branch {branch!r:.60}, need a plain name")
    for branch in branches:
        own = [line for line in metrics if line["branch"] == branch]
        errors = rows if branch == "quantized" else ()
        if own or errors:
            with writer_of(folder / branch) as writer:
                for line in own:
                    add_metrics(writer, line)
                for row in errors:
                    add_row(writer, row)
    return folder


def at(line: Mapping[str, Any]) -> int:
    """The 0-based step that a line of the metrics tells of, an epoch's its last: what is done of a
    run has lower ones than what is to come."""
    return int(line["step"]) - int(line["kind"] == "epoch")


def writer_of(folder: Path, **settings: Any) -> SummaryWriter:
    """torch's writer of events; ValueError where the package is missing or the folder no such."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard: the package is not installed; pip install 'qtrain[tensorboard]'"
        ) from error
    try:
        return SummaryWriter(str(folder), **settings)
    except OSError as error:
        raise ValueError(
            f"tensorboard: {folder} cannot be written ({error.strerror or error}); give another"
        ) from error


def add_metrics(writer: SummaryWriter, line: Mapping[str, Any]) -> None:
    """Each number of a line as a scalar."""
    for name, value in line.items():
        if name not in _KEYS:
            number = math.nan if value is None else value
            writer.add_scalar(f"run/{name}", number, at(line))


def add_row(writer: SummaryWriter, row: MonitorRow) -> None:
    """Each figure of a monitor's row as a scalar, its values and codes as histograms."""
    tensor = f"{row.layer}/{row.role}"
    for figure in (*FIGURES, *MONITORED):
        value = getattr(row, figure.name)
        if figure.event is not None and value is not None:
            writer.add_scalar(f"{figure.name}/{tensor}", figure.event(value), row.step)
    _add_histogram(writer, f"values/{tensor}", row.values, row.step)
    _add_histogram(writer, f"codes/{tensor}", row.codes, row.step)


def _add_histogram(writer: SummaryWriter, tag: str, counts: Sequence[int], step: int) -> None:
    """Counts in the bins of `value_counts`, or of codes; none where nothing was counted."""
    used = [i for i, n in enumerate(counts) if n]
    if not used:
        return
    values = len(counts) == VALUE_BINS  # codes of integers have 2^bits bins, or one less
    edges = _value_edges() if values else [i + 0.5 for i in range(-1, len(counts))]
    part = slice(used[0], used[-1] + 1)
    writer.add_histogram_raw(
        tag,
        min=edges[used[0]],
        max=edges[used[-1] + 1],
        num=sum(counts),
        sum=math.nan,  # not known from counts
        sum_squares=math.nan,
        bucket_limits=edges[1:][part],
        bucket_counts=list(counts[part]),
        global_step=step,
    )


def _value_edges() -> list[float]:
    """The 98 edges of `value_counts`: a bin holds what is above one and not above the next; the
    magnitudes at the outer ends, and around zero, stand for all beyond."""
    powers = [2.0**e for e in range(LOWEST + 1, HIGHEST + 2)]
    tiny = 2.0**LOWEST / 2
    return [*(-p for p in reversed(powers)), -tiny, tiny, *powers]
