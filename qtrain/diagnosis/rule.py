"""A rule of a verdict: a figure of a tensor's records, and from where on it is a symptom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from . import figures as series
from .figures import Series, Values


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A figure of a tensor's records, and from where on it is a symptom.

    symptom    its name, and what is said of it
    roles      the roles that are looked at
    values     the figure of each record
    threshold  from where on it is a symptom
    smallest   whether small values are bad, not large ones
    over_all   takes one value from all records; None: what a quarter of them reaches, see
               `series.often`
    noise      the standard error of that value: five of them are added to the threshold
    where      of which tensors it is a symptom; None: of all
    base       severity at the threshold; `most`: the highest.  Severity is `base` and the decades
               between threshold and value
    error      whether it is an error of the rounding, from which the operand's products suffer
    explains   symptoms of the same tensor that this one brings along, and that are not named beside
    cause, remedy   with {layer} and {slot}, the operand's quantizer in a recipe
    source     where the threshold comes from
    """

    symptom: str
    roles: tuple[str, ...]
    values: Callable[[Series], Values]
    threshold: float
    smallest: bool = False
    over_all: Callable[[Series], float | None] | None = None
    noise: Callable[[Series], float] | None = None
    where: Callable[[Series], bool] | None = None
    base: float = 0.0
    most: float = 3.0
    error: bool = True
    explains: tuple[str, ...] = ()
    cause: str
    remedy: str
    source: str

    def value(self, rows: Series) -> float | None:
        """The figure over all records; None where no record has it."""
        if self.over_all is not None:
            return self.over_all(rows)
        return series.often(self.values(rows), smallest=self.smallest)

    def limit(self, rows: Series) -> float:
        """The threshold, and what noise alone may add to it."""
        return self.threshold + (5 * self.noise(rows) if self.noise is not None else 0.0)

    def severity(self, value: float, limit: float) -> float:
        """0 to `most`; below 0: no symptom."""
        bad, good = (limit, value) if self.smallest else (value, limit)
        if bad <= good:
            return -1.0
        decades = math.log10(bad / good) if good > 0 and math.isfinite(bad) else self.most
        return min(self.base + decades, self.most)
