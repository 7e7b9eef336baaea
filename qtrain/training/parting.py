"""Where two runs' series part: losses whose difference leaves its own noise, and errors in dB that
leave each other's band."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev

from .run_series import Series

#: Standard errors by which the mean difference of a window must differ from 0.  They come from the
#: window's own scatter, of as few as 5 differences: Student's t of 4 degrees of freedom lies beyond
#: +-5 once in 130, in two windows in a row on the same side once in 34,000.
ERRORS = 5.0
#: The smallest difference that counts, as a fraction of the loss.
TELLING = 0.01
#: Half the width of a band: so many times the scatter of the records around, and so many dB on top.
DEVIATIONS, MARGIN_DB = 4.0, 2.0
#: How many records make a band, at most and at least.
RECORDS, FEWEST = 9, 4
#: Where an SQNR is cut, in dB: that of no error is infinite.
LIMIT_DB = 200.0
#: The standard deviation of normal numbers in units of their median absolute deviation.
_NORMAL = 1.4826


@dataclass(frozen=True, kw_only=True)
class LossParting:
    """How two runs' losses compare at the steps that both logged.

    steps        how many steps those are
    differs      the first at which loss or gradient norm differ in a bit; None: at none
    parts        the first step of two windows in a row in which the mean of B - A lies on the same
                 side, beyond ERRORS of its standard errors and TELLING of the loss; None: the
                 losses stay within each other's noise
    window       how many logged steps a window has; 0: there are too few to tell
    difference   the mean of B - A in that window; in the last one where they do not part
    noise        the standard deviation of B - A from one logged step to another in that window
    """

    steps: int
    differs: int | None
    parts: int | None
    window: int
    difference: float
    noise: float


def loss_parting(losses: tuple[Series, Series], norms: tuple[Series, Series]) -> LossParting:
    """Where run B's losses leave run A's; losses, norms: (A's, B's) of one branch."""
    a, b = (dict(series) for series in losses)
    norm_a, norm_b = (dict(series) for series in norms)
    steps = [step for step in a if step in b]

    def same(step: int) -> bool:
        return _equal(a[step], b[step]) and _equal(norm_a[step], norm_b[step])

    size = max(5, len(steps) // 20)
    starts = range(len(steps) - size + 1) if len(steps) >= 2 * size else range(0)
    windows = [_Window.of(a, b, steps[start : start + size]) for start in starts]
    parts = next(
        (i for i in range(len(windows) - size) if windows[i].side * windows[i + size].side > 0),
        None,
    )
    shown = windows[-1 if parts is None else parts] if windows else _Window(math.nan, math.nan, 0)
    return LossParting(
        steps=len(steps),
        differs=next((step for step in steps if not same(step)), None),
        parts=None if parts is None else steps[parts],
        window=size if windows else 0,
        difference=shown.mean,
        noise=shown.noise,
    )


@dataclass(frozen=True)
class _Window:
    """The mean and the scatter of B - A over some steps, and on which side B lies: -1, 0 or 1."""

    mean: float
    noise: float
    side: int

    @staticmethod
    def of(a: dict[int, float], b: dict[int, float], steps: list[int]) -> _Window:
        gaps = [b[step] - a[step] for step in steps]
        if not all(map(math.isfinite, gaps)):
            return _Window(math.nan, math.nan, 0)
        mean, noise = fmean(gaps), stdev(gaps)
        least = max(
            ERRORS * noise / math.sqrt(len(gaps)), TELLING * fmean(abs(a[step]) for step in steps)
        )
        return _Window(mean, noise, (mean > least) - (mean < -least))


def error_parting(a: Series, b: Series) -> int | None:
    """The first recorded step at which one of two runs' SQNRs leaves the other's band, and does so
    at its next record too, on the same side; None where neither does or there are too few records.

    The band at a step: the median of the other's RECORDS records around it, +- DEVIATIONS times the
    scatter of the noisier run there + MARGIN_DB.  Scatter: from one record to the next, 1.4826
    times the median |difference| / sqrt(2), which one jump does not widen.
    """
    if min(len(a), len(b)) < FEWEST:
        return None
    found = [step for step in (_leaves(a, b), _leaves(b, a)) if step is not None]
    return min(found) if found else None


def cut_db(sqnr_db: float) -> float:
    """An SQNR within +-LIMIT_DB; a NaN, where something was not finite, counts as the worst."""
    return -LIMIT_DB if math.isnan(sqnr_db) else min(max(sqnr_db, -LIMIT_DB), LIMIT_DB)


def _leaves(a: Series, b: Series) -> int | None:
    """Where b leaves a's band."""
    last, last_side = 0, 0
    for step, value in b:
        around = _around(a, step)
        scatter = max(_scatter(around), _scatter(_around(b, step)))
        off = cut_db(value) - median(around)
        half = DEVIATIONS * scatter + MARGIN_DB
        side = (off > half) - (off < -half)
        if side != 0 and side == last_side:
            return last
        last, last_side = step, side
    return None


def _around(series: Series, step: int) -> list[float]:
    """The RECORDS values nearest to a step, in the order of steps."""
    middle = bisect_left(series, (step,))
    low = max(min(middle - RECORDS // 2, len(series) - RECORDS), 0)
    return [cut_db(value) for _, value in series[low : low + RECORDS]]


def _scatter(values: list[float]) -> float:
    return _NORMAL * median(abs(b - a) for a, b in pairwise(values)) / math.sqrt(2)


def _equal(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
