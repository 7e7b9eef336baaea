"""What rounding took from updates and states, counted by parameter."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..reports.numbers import short
from ..reports.rows import save_rows
from ..reports.table import Table

#: of a tensor: what counted and what was lost of it, over all steps; the first step that lost
#: anything, or -1; the most that a step lost, and when
SIZE = 5


def counts(device: torch.device) -> Tensor:
    """Nothing counted yet: int64, (SIZE,)."""
    made = torch.zeros(SIZE, dtype=torch.int64, device=device)
    made[2] = made[4] = -1
    return made


def counted(now: Tensor, seen: Tensor, lost: Tensor, step: Tensor) -> Tensor:
    """The counts after a step.  seen, lost: bool, by element; step: 0-d int64."""
    total, gone = seen.sum(), lost.sum()
    first = torch.where((now[2] < 0) & (gone > 0), step, now[2])
    most = gone > now[3]
    worst, when = torch.where(most, gone, now[3]), torch.where(most, step, now[4])
    return torch.stack([now[0] + total, now[1] + gone, first, worst, when])


@dataclass(frozen=True, kw_only=True)
class UpdateRow:
    """What rounding took from one tensor, over all steps.

    parameter  its name
    tensor     "weight": of updates that were not 0, lost are those that changed neither the weight
               nor its compensation;  else the state's name: of numbers that were not 0, lost are
               those that became 0
    steps      that were counted
    seen, lost how many elements, of all steps together
    first      the first step, from 0, that lost any; -1: none did
    most       elements that were lost in the step that lost the most;  worst: that step, or -1
    """

    parameter: str
    tensor: str
    steps: int
    seen: int
    lost: int
    first: int
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
            return "no step yet"
        lines = [
            [
                f"{row.parameter}: {row.tensor}",
                f"{row.seen:,}",
                f"{row.lost:,}",
                short(row.share),
                "" if row.first < 0 else str(row.first),
                "" if row.worst < 0 else f"{row.worst} ({row.most:,})",
            ]
            for row in self.rows
        ]
        headers = ["tensor", "not 0", "lost", "share", "first step", "worst step"]
        return Table(headers=headers, lines=lines).text()


def rows_of(found: Mapping[str, Mapping[str, Tensor]], steps: int) -> UpdateReport:
    """The report of counts by parameter and tensor."""
    rows = [
        UpdateRow(
            parameter=name, tensor=part, steps=steps, **dict(zip(_NUMBERS, numbers, strict=True))
        )
        for name, parts in found.items()
        for part, numbers in ((part, own.tolist()) for part, own in parts.items())
    ]
    return UpdateReport(tuple(rows))


_NUMBERS = ("seen", "lost", "first", "most", "worst")
