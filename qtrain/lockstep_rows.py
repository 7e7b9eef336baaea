"""What a lockstep run found: rows, partings, the whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import write_atomically
from .lockstep_text import lockstep_text
from .saving import strict
from .switches import Part


@dataclass(frozen=True, kw_only=True)
class LockstepRow:
    """One tensor of one layer at one step.

    call        which of the layer's calls in the step, from 0
    deviation   |quantized - reference| / |reference|
    band        the same of the repeated runs, root-mean-square
    error, bias   of an operand: see `OwnError`; None for a product, and where x was not finite
    leaves      "error", "bias", "deviation", "not finite", or "" within the band
    """

    step: int
    layer: str
    role: str
    call: int
    deviation: float
    band: float
    error: float | None = None
    bias: float | None = None
    leaves: str = ""


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where a tensor first leaves its band.

    row      that step's
    values   name -> counts in the bins of `histograms.value_counts`, of the elements looked at:
             "reference", "quantized", and of an operand "before rounding"
    """

    row: LockstepRow
    values: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Lockstep:
    """A quantized run beside its reference: print it, `save` it, `plot` it.

    reference   "fp32" or "bf16"
    losses      "reference", "quantized", "band 1", ... -> the loss of each step
    rows        of every step, in the order of events: forward, then backward
    partings    of each layer and role that left its band the first time, in the order of events
    rounded     the parts that the model rounds
    """

    reference: str
    losses: Mapping[str, tuple[float, ...]]
    rows: tuple[LockstepRow, ...]
    partings: tuple[Parting, ...]
    rounded: tuple[Part, ...]

    @property
    def steps(self) -> int:
        return len(self.losses["reference"])

    @property
    def first(self) -> Parting | None:
        """The first parting; None where every tensor stayed within its band."""
        return self.partings[0] if self.partings else None

    @property
    def parts(self) -> tuple[Part, ...]:
        """(layer, role) of the partings that can be switched off (`switches.switched_off`)."""
        found = dict.fromkeys((p.row.layer, p.row.role) for p in self.partings)
        return tuple(part for part in found if part in self.rounded)

    def series(self, layer: str, role: str, call: int = 0) -> list[LockstepRow]:
        """The rows of one tensor, step by step."""
        return [r for r in self.rows if (r.layer, r.role, r.call) == (layer, role, call)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a .json file, atomically; ValueError for other endings."""
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"save: got {str(path)!r}, need a path that ends in .json")
        text = json.dumps(strict(asdict(self)), indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Losses, the first parting's series and histograms, to a PNG or SVG; without a parting,
        the series of the tensor nearest to leaving its band."""
        from .plots_of_runs import plot_lockstep  # matplotlib takes a second to import

        plot_lockstep(self, Path(path))

    def nearest(self) -> LockstepRow | None:
        """The row whose deviation is largest in units of its band; None without rows."""
        rows = [row for row in self.rows if row.band > 0 and math.isfinite(row.deviation)]
        return max(rows, key=lambda row: row.deviation / row.band, default=None)

    def __str__(self) -> str:
        return lockstep_text(self)
