"""What rounding took from updates and states, counted by parameter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...reports.numbers import short
from ...reports.rows import save_rows
from ...reports.table import Table

#: of a tensor: the fields of UpdateRow from `seen` on
_NUMBERS = ("seen", "lost", "times", "first", "last", "most", "worst")
SIZE = len(_NUMBERS)


def counts(device: torch.device) -> Tensor:
    """Nothing counted yet: int64, (SIZE,)."""
    made = torch.zeros(SIZE, dtype=torch.int64, device=device)
    made[[3, 4, 6]] = -1
    return made


def counted(now: Tensor, seen: Tensor, lost: Tensor, step: Tensor) -> Tensor:
    """The counts after a step.  seen, lost: bool, by element; step: 0-d int64."""
    total, gone = seen.sum(), lost.sum()
    seen_before, lost_before, times, first, last, most, worst = now
    any_ = gone > 0
    more = gone > most
    return torch.stack(
        [
            seen_before + total,
            lost_before + gone,
            times + any_,
            torch.where(any_ & (first < 0), step, first),
            torch.where(any_, step, last),
            torch.where(more, gone, most),
            torch.where(more, step, worst),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class UpdateRow:
    """What rounding took from one tensor, over all steps.

    parameter  its name
    tensor     "weight": of updates that were not 0, lost are those that changed neither the weight
               nor its compensation;  else the state's name: of numbers that were not 0, lost are
               those that became 0
    kept       in what it is kept;  noisy: whether it is rounded stochastically, so that what is
               lost once is made up for by what is gained another time
    steps      of the optimizer
    seen, lost how many elements, of all steps together
    times      steps that lost any;  first, last: of them, from 0, or -1
    most       elements that were lost in the step that lost the most;  worst: that step, or -1
    """

    parameter: str
    tensor: str
    kept: str
    noisy: bool
    steps: int
    seen: int
    lost: int
    times: int
    first: int
    last: int
    most: int
    worst: int

    @property
    def share(self) -> float:
        """lost / seen, 0 where nothing was seen."""
        return self.lost / self.seen if self.seen else 0.0


@dataclass(frozen=True)
class UpdateReport:
    """Rows by parameter: `print(report)`, `report.save("updates.json")`."""

    rows: tuple[UpdateRow, ...]

    def __iter__(self) -> Iterator[UpdateRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: tuple[str, str]) -> UpdateRow:
        """The row of (parameter, tensor); KeyError where there is none."""
        for row in self.rows:
            if (row.parameter, row.tensor) == at:
                return row
        raise KeyError(at)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, atomically.  ValueError for other endings."""
        return save_rows(self.rows, UpdateRow, path)

    def __str__(self) -> str:
        if not self.rows:
            return (
                "nothing counted: no step yet, or gradients alone are in low precision, or every "
                "state has fewer elements than min_size"
            )
        lines = [
            [
                f"{row.parameter}: {row.tensor}{'*' * row.noisy}",
                f"{row.seen:,}",
                f"{row.lost:,}",
                short(row.share),
                "" if row.first < 0 else str(row.first),
                "" if row.worst < 0 else f"{row.worst} ({row.most:,})",
            ]
            for row in self.rows
        ]
        headers = ["tensor", "not 0", "lost", "share", "first step", "worst step"]
        made_up = "* rounded stochastically: what is lost once is gained another time"
        noisy = any(row.noisy for row in self.rows)
        return "\n".join([Table(headers=headers, lines=lines).text(), *[made_up] * noisy])


def rows_of(
    found: Mapping[str, Mapping[str, Tensor]], steps: int, kept: Callable[[str], tuple[str, bool]]
) -> UpdateReport:
    """The report of counts by parameter and tensor.  kept: of a tensor, in what it is kept, and
    whether it is rounded stochastically."""
    rows = []
    for name, parts in found.items():
        for part, own in parts.items():
            text, noisy = kept(part)
            numbers = dict(zip(_NUMBERS, own.tolist(), strict=True))
            row = UpdateRow(
                parameter=name, tensor=part, kept=text, noisy=noisy, steps=steps, **numbers
            )
            rows.append(row)
    return UpdateReport(tuple(rows))
