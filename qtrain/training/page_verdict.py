"""What a run came to, in a sentence, and what to know of its page."""

from __future__ import annotations

from collections.abc import Iterator

from ..inspection.row import worst_first
from ..reports.numbers import in_decibels
from .record import RunRecord

#: processes that wanted a core, for each that there is, from which on times are doubtful
BUSY = 1.25


def sentence(record: RunRecord) -> list[str]:
    """The gap and whether its interval leaves it open, and the tensor of lowest SQNR: pieces of
    text, every second one to stand out; none where neither is known."""
    found = [""]
    if (gap := record.gap) is not None and record.config is not None:
        points = f"{100 * abs(gap.value):.2f} points"
        told = f"{'behind' if gap.value < 0 else 'ahead of'} full precision by {points}"
        if gap.low <= 0 <= gap.high:
            told = f"within noise of full precision: a gap of {100 * gap.value:+.2f} points"
        interval = f"95 % interval [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        found += [record.config.label, f" is {told}, {interval}; "]
    for row in worst_first(record.errors.rows)[:1]:
        found[-1] += f"{'the' if found[1:] else 'The'} weakest spot is "
        found += [f"{row.layer}'s {row.role}", f", {in_decibels(row.sqnr_db)}"]
    found[-1] = f"{found[-1].removesuffix('; ')}."
    return found if found[1:] else []


def remarks(record: RunRecord) -> Iterator[str]:
    """Why its times are doubtful, and what would show more."""
    if record.load is not None and record.epochs:
        load, cores = record.load
        if load > BUSY * cores:
            yield (
                f"Times were taken on a busy machine: at the run's end {load:.1f} processes wanted "
                f"its {cores} cores; compare none of them."
            )
    if record.config is not None and record.errors.rows and not record.monitor:
        yield (
            "Errors are those of one batch after the last step. With --monitor 100 every layer's "
            "stand here over the run, with histograms, and a verdict on what is wrong."
        )
