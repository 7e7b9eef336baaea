"""What each part of a model does to loss and gradient, as a table that prints and saves."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from .. import checks
from ..files.terminal import printable
from ..reports.rows import save_rows
from ..reports.table import WIDTH, Table

#: The columns by which parts can be ranked, the worst part having most.
RANKINGS = ("gain_cosine", "gain_loss", "alone_error", "alone_loss")
#: Of each figure that a table shows: the heading, and how its values are written.
_COLUMNS = (
    ("gain_cosine", "gain in\ncosine", "+.5f"),
    ("gain_loss", "gain in\nloss", "+.1e"),
    ("alone_cosine", "alone:\ncosine", ".5f"),
    ("alone_error", "alone:\ntan^2", ".1e"),
    ("alone_loss", "alone:\nloss", "+.1e"),
)


@dataclass(frozen=True)
class SensitivityRow:
    """A part of a model put back to full precision alone (gain), and quantized alone.

    layer          module path;  part: "all", a product or a role
    module         the module by whose name an override reaches it: the layer, or its attention
    gain_cosine    how much closer to 1 comes the cosine of the gradient with that of full precision
    gain_loss      how much of the loss goes
    alone_cosine   the cosine with this part quantized alone
    alone_error    1 / alone_cosine^2 - 1: tan^2 of the angle, which adds up over orthogonal errors
    alone_loss     the loss with this part quantized alone, less that of full precision
    """

    layer: str
    part: str
    module: str
    gain_cosine: float
    gain_loss: float
    alone_cosine: float
    alone_error: float
    alone_loss: float


@dataclass(frozen=True)
class SensitivityReport:
    """Rows in network order; they print the worst first.  `print(report)`, `report.worst(5)`,
    `report.save("blame.csv")`.

    by          what a part is: "layer", "product" or "role";  batches: how many it is a mean over
    full_loss   in full precision;  loss: with everything quantized
    cosine      of the gradient, everything quantized, with that of full precision
    error       1 / cosine^2 - 1
    """

    by: str
    batches: int
    full_loss: float
    loss: float
    cosine: float
    error: float
    rows: tuple[SensitivityRow, ...]

    def worst(self, count: int = 5, by: str = "gain_cosine") -> list[SensitivityRow]:
        """The parts that do most harm by one of `RANKINGS`, a NaN first."""
        checks.integer("worst", count, low=1)
        checks.choice("by", by, RANKINGS)
        return sorted(self.rows, key=lambda row: _harm(row, by), reverse=True)[:count]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, atomically.  ValueError for other endings."""
        return save_rows(self.rows, SensitivityRow, path)

    def table(self, count: int | None = None) -> str:
        """The rows, or the worst `count` of them, the worst first, and the whole below."""
        rows = self.worst(max(1, len(self.rows)) if count is None else count)
        most = max((_harm(row) for row in rows), default=0.0)
        table = [
            [
                self._name(row) + (" *" if 0 < most <= 2 * _harm(row) else ""),
                *(format(getattr(row, name), form) for name, _, form in _COLUMNS),
            ]
            for row in rows
        ]
        first = "layer" if self.by == "layer" else f"layer and {self.by}"
        headers = [first, *(heading for _, heading, _ in _COLUMNS)]
        return f"{Table(headers=headers, lines=table).text()}\n\n{self._whole()}"

    def _name(self, row: SensitivityRow) -> str:
        return row.layer if self.by == "layer" else f"{row.layer} {row.part}"

    def _whole(self) -> str:
        """What the columns are, and the numbers of the whole model."""
        total = sum(row.alone_error for row in self.rows)
        lines = [
            "*: at least half of the largest gain in cosine",
            "gain: what goes of the damage with the part alone put back to full precision",
            "alone: the part alone quantized; the cosine of the gradient with that of full",
            "precision, tan^2 = 1/cos^2 - 1 of their angle, the change of the loss",
            f"all quantized: cosine {self.cosine:.5f}, tan^2 {self.error:.2g} (alone, parts sum to "
            f"{total:.2g}),",
            f"loss {self.loss:.6g}; in full precision {self.full_loss:.6g}"
            + (f"; means over {self.batches} batches" if self.batches > 1 else ""),
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        """What the rows say, in one sentence."""
        if not self.rows:
            return "Nothing was measured."
        worst = self.worst(1)[0]
        if worst.gain_cosine <= 0:
            return "No part alone is to blame: the gradient is no closer without any one of them."
        return (
            f"{self._name(worst)!r} does most harm: with it alone in full precision, the cosine of "
            f"the gradient goes from {self.cosine:.5f} to {self.cosine + worst.gain_cosine:.5f}."
        )

    def __str__(self) -> str:
        return f"{fill(printable(self._verdict(), keep=''), WIDTH)}\n\n{self.table()}"


def _harm(row: SensitivityRow, by: str = "gain_cosine") -> float:
    value: float = getattr(row, by)
    return math.inf if math.isnan(value) else value
