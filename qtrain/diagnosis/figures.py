"""What the records of one tensor say together: figures, and the rules that look at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..inspection.detail import error_of_mean
from ..inspection.distributions import VALUE_BINS
from ..inspection.row import RESULTS, ROLES, SLOT_OF
from ..inspection.rows import MonitorRow

PRODUCTS = tuple(RESULTS.values())
OPERANDS = tuple(role for role in ROLES if role in SLOT_OF)
#: The rows of one layer and role, in the order of steps.
Series = Sequence[MonitorRow]
#: A figure of each row; None for a row that has none.
Values = list[float | None]


def field(name: str) -> Callable[[Series], Values]:
    """The magnitude of a row's own field."""

    def values(rows: Series) -> Values:
        found = [getattr(row, name) for row in rows]
        return [None if value is None or math.isnan(value) else abs(value) for value in found]

    return values


def nonfinite(rows: Series) -> Values:
    """The fraction of elements that are NaN or infinite."""
    return [row.nonfinite / max(row.elements, 1) for row in rows]


def overflow(rows: Series) -> float | None:
    """The largest such fraction; of a gradient that is finite in the end, what is often so: a
    GradScaler meets infinities now and then."""
    found = nonfinite(rows)
    passing = "grad" in rows[0].role and found[-1] == 0
    return often(found) if passing else max(value or 0.0 for value in found)


def loses(rows: Series) -> bool:
    """Whether the error takes a fiftieth of the signal or more: a clip of rare peaks does not."""
    found = often(lost(rows))
    return found is None or found >= 0.02


def lost(rows: Series) -> Values:
    """What the error takes of the signal: 1 where nothing of it is left."""
    return [None if math.isnan(row.gain) or not _has_signal(row) else -row.gain for row in rows]


def kept(rows: Series) -> Values:
    """The fraction of the elements other than 0 that did not become 0."""
    found: Values = []
    for row in rows:
        zeros = row.values[len(row.values) // 2] if row.values else 0
        other = row.elements - zeros
        found.append(1 - row.zeroed * row.elements / other if other > 0 else None)
    return found


def room(rows: Series) -> Values:
    """The part of the representable interval that the tensor takes, at most 1."""
    return [
        None if row.reach is None or not _has_signal(row) else min(row.reach, 1.0) for row in rows
    ]


def used(rows: Series) -> Values:
    """The largest code in units of the format's largest; of integers alone, whose step does not
    follow a value."""
    integers = [bool(row.codes) and not _is_float(row) for row in rows]
    return [value if own else None for value, own in zip(room(rows), integers, strict=True)]


def scatters(rows: Series) -> bool:
    """Whether most of the error is other than a gain."""
    shares = [row.gain**2 * 10 ** (row.sqnr_db / 10) for row in rows if math.isfinite(row.sqnr_db)]
    found = often([share for share in shares if not math.isnan(share)])
    return found is None or found < 0.5


def over_noise(rows: Series) -> Values:
    """||x|| / ||error||."""
    return [
        10 ** (row.sqnr_db / 20) if math.isfinite(row.sqnr_db) and _has_signal(row) else None
        for row in rows
    ]


def stride(rows: Series) -> Values:
    """A weight's update in units of its largest magnitude; None where its steps are no unit of
    that: in a float format."""

    def share(row: MonitorRow) -> float | None:
        largest = max(abs(row.low), abs(row.high))
        if row.update is None or row.scale is None or largest <= 0 or _is_float(row):
            return None
        return row.update * row.scale[1] / largest

    return [share(row) for row in rows]


def stale(rows: Series) -> Values:
    """How ill a scale that stands still while the tensor's range moves fits the tensor: the factor
    by which it is too small, or half of that by which it is too large (a scale that is rounded up
    to a power of two is too large by up to 2).  None where it does not stand still for three
    records."""
    found: Values = [None] * len(rows)
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end].scale == rows[start].scale:
            continue
        run = rows[start:end]
        moves = len({(row.low, row.high) for row in run}) > 1
        if len(run) >= 3 and moves and run[0].scale is not None:
            for i, row in enumerate(run, start):
                if row.reach is not None:
                    found[i] = max(row.reach, 0.5 / row.reach if row.reach > 0 else math.inf)
        start = end
    return found


def noise_of_mean(name: str) -> Callable[[Series], float]:
    """The standard error of the mean of a field with one of its own."""

    def noise(rows: Series) -> float:
        errors = [error for row in rows if (error := getattr(row, name)) is not None]
        return error_of_mean(errors) if errors else 0.0

    return noise


def noise_of_gain(rows: Series) -> float:
    """The standard error of the mean of `gain`, of errors that are independent of x."""
    errors = [
        10 ** (-row.sqnr_db / 20) / math.sqrt(row.elements)
        for row in rows
        if math.isfinite(row.sqnr_db) and row.elements > 0
    ]
    return error_of_mean(errors) if errors else 0.0


def mean(name: str, of: Callable[[float], float] = float) -> Callable[[Series], float | None]:
    """A signed field's mean over all records, in which noise changes its sign; of: of the mean."""

    def value(rows: Series) -> float | None:
        found = [getattr(row, name) for row in rows]
        found = [value for value in found if value is not None and not math.isnan(value)]
        return of(sum(found) / len(found)) if found else None

    return value


def often(values: Values, *, smallest: bool = False) -> float | None:
    """What a quarter of the records, at least two of several, reach; or, of values that are bad
    where they are small, stay below."""
    found = sorted((v for v in values if v is not None), reverse=not smallest)
    if not found:
        return None
    place = max(min(2, len(found)), math.ceil(len(found) / 4))
    return found[place - 1]


def _has_signal(row: MonitorRow) -> bool:
    return row.low != 0 or row.high != 0


def _is_float(row: MonitorRow) -> bool:
    """Whether its codes are those of a float format: no integers have as many bins."""
    return len(row.codes) == VALUE_BINS


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A figure of a tensor's records, and from where on it is a symptom.

    symptom    its name, and what is said of it
    roles      the roles that are looked at; by default every operand
    values     the figure of each record
    threshold  from where on it is a symptom
    smallest   whether small values are bad, not large ones
    over_all   takes one value from all records; None: what a quarter of them reaches, see
               `often`
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
    roles: tuple[str, ...] = OPERANDS
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
        return often(self.values(rows), smallest=self.smallest)

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
