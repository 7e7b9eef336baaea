"""A lockstep run as text of 80 columns."""

from __future__ import annotations

import math
from textwrap import wrap
from typing import TYPE_CHECKING

from .histograms import LOWEST, VALUE_BINS
from .report_table import aligned
from .text_table import WIDTH

if TYPE_CHECKING:
    from .lockstep_rows import Lockstep, LockstepRow, Parting

#: How many partings and how many steps' losses are printed; `save` writes them all.
_PARTINGS, _LOSSES = 12, 10
_REASONS = {
    "error": "its own error is {0.error:.3g} times that of unbiased rounding in its format",
    "bias": "its own error has a mean part of {0.bias:.2g} times unbiased rounding's error",
    "deviation": "it is {1:.3g} times as far from the reference as the repeated runs are",
    "not finite": "it is not finite, but the reference's is",
}


def lockstep_text(found: Lockstep) -> str:
    """The first parting in words, its histograms, the others, and the losses."""
    bands = len(found.losses) - 2
    head = f"{found.steps} steps beside {found.reference}; band of {bands} repeated runs"
    if found.first is None:
        row = found.nearest()
        text = "no tensor left its band"
        if row is not None:
            text += (
                f"; nearest to it: step {row.step}, layer {row.layer}, {_role(row)}, "
                f"{_times(row):.2g} times the band's deviation"
            )
        parts = [_wrapped(text)]
    else:
        row = found.first.row
        parts = [
            _wrapped(
                f"first parting: step {row.step}, layer {row.layer}, {_role(row)}: "
                + _REASONS[row.leaves].format(row, _times(row))
            ),
            _histograms(found.first),
            _partings(found),
        ]
    return "\n\n".join([head, *parts, _losses(found)])


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, WIDTH, subsequent_indent="  "))


def _role(row: LockstepRow) -> str:
    return row.role if row.call == 0 else f"{row.role}, call {row.call + 1}"


def _times(row: LockstepRow) -> float:
    if row.band == 0:
        return math.inf if row.deviation else 0.0
    return row.deviation / row.band


def _histograms(parting: Parting) -> str:
    """Percent of the elements in each binade, both signs together, from the largest down."""
    names = list(parting.values)
    middle = VALUE_BINS // 2
    folded = {}
    for name, counts in parting.values.items():
        pairs = [counts[middle + i] + counts[middle - i] for i in range(1, middle + 1)]
        total = max(sum(counts), 1)
        folded[name] = [100 * counts[middle] / total, *(100 * count / total for count in pairs)]
    filled = [i for i in range(1, middle + 1) if any(own[i] >= 0.005 for own in folded.values())]
    lines: list[list[str] | str] = []
    for i in sorted(filled, reverse=True)[:12]:
        binade = LOWEST + i - 1
        label = f"2^{binade} to 2^{binade + 1}"
        lines.append([label, *(f"{folded[name][i]:.2f}" for name in names)])
    rest = sorted(filled, reverse=True)[12:]
    if rest:
        lines.append(["below", *(f"{sum(folded[name][i] for i in rest):.2f}" for name in names)])
    lines.append(["0", *(f"{folded[name][0]:.2f}" for name in names)])
    return "\n".join(aligned(["|value|, % of elements", *names], lines))


def _partings(found: Lockstep) -> str:
    lines: list[list[str] | str] = []
    for parting in found.partings[:_PARTINGS]:
        row = parting.row
        own = ["" if value is None else f"{value:.3g}" for value in (row.error, row.bias)]
        figures = [str(row.step), row.leaves, f"{row.deviation:.2g}", f"{row.band:.2g}", *own]
        lines.append([f"{row.layer} {_role(row)}", *figures])
    headers = ["first to leave", "step", "by", "deviation", "band", "error", "bias"]
    text = "\n".join(aligned(headers, lines))
    more = len(found.partings) - _PARTINGS
    return text + (f"\n{more} more left later" if more > 0 else "")


def _losses(found: Lockstep) -> str:
    every = max(1, math.ceil(found.steps / _LOSSES))
    shown = {*range(0, found.steps, every), found.steps - 1}
    if found.first is not None:
        shown.add(found.first.row.step)
    bands = [own for name, own in found.losses.items() if name.startswith("band")]
    lines: list[list[str] | str] = []
    for step in sorted(shown):
        spread = [own[step] for own in bands]
        figures = (found.losses["reference"][step], found.losses["quantized"][step])
        cells = [f"{value:.4g}" for value in (*figures, min(spread), max(spread))]
        lines.append([str(step), *cells])
    return "\n".join(aligned(["loss at step", "reference", "quantized", "band from", "to"], lines))
