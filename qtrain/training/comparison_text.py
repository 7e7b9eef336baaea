"""A comparison of two runs as text of 80 columns."""

from __future__ import annotations

import math
from textwrap import wrap
from typing import TYPE_CHECKING

from ..files.terminal import printable
from ..inspection.report_table import aligned
from ..reports.table import WIDTH
from .config import NOT_COMPARED
from .environment import DECISIVE
from .parting import LIMIT_DB, LossParting

if TYPE_CHECKING:
    from .compare import Accuracy, Comparison, ErrorPair

#: How many rows of errors are printed; `save` writes them all.
_ROWS = 20


def comparison_text(found: Comparison) -> str:
    """What differs, where the losses part, the accuracies, and the errors, the worst first."""
    places = (("A", found.a.path), ("B", found.b.path))
    parts = [
        "\n".join(f"{run}  {printable(path, keep='')}" for run, path in places),
        _settings(found),
        "\n".join(_losses(found)),
        *(["\n".join(_accuracies(found))] if found.accuracy else []),
        _errors(found),
    ]
    return printable("\n\n".join(parts))


def _settings(found: Comparison) -> str:
    lines = []
    telling = {n: v for n, v in found.settings.items() if n not in NOT_COMPARED}
    lines += _table("what is computed", telling)
    lines += _table("where and how", {n: v for n, v in found.settings.items() if n not in telling})
    decisive = {n: v for n, v in found.versions.items() if n in DECISIVE}
    lines += _table("can change bits", decisive)
    lines += _table(
        "other versions", {n: v for n, v in found.versions.items() if n not in decisive}
    )
    if not lines:
        lines = ["configuration and versions are the same"]
    samples = "the same samples in the same order" if found.same_samples else (
        "not the same samples in the same order (data, batch_size or seed differ)"
    )  # fmt: skip
    return "\n".join([*lines, f"both train on {samples}" if found.same_samples else samples])


def _table(
    title: str, rows: dict[str, tuple[object, object]] | dict[str, tuple[str, str]]
) -> list[str]:
    if not rows:
        return []
    cells: list[list[str] | str] = []
    for name, (a, b) in rows.items():
        first, second = _shown(a), _shown(b)
        if max(len(first), len(second)) > 25:  # each on a line of its own
            for run, text in (("A", first), ("B", second)):
                cells += wrap(f"{name}, {run}: {text}", WIDTH, subsequent_indent="    ")
        else:
            cells.append([name, first, second])
    if not any(isinstance(cell, list) for cell in cells):
        return [title, *map(str, cells)]
    return aligned([title, "A", "B"], cells)


def _shown(value: object) -> str:
    return "default" if value is None else printable(value)


def _losses(found: Comparison) -> list[str]:
    if not found.losses:
        return ["no branch was trained in both: no losses to compare"]
    lines = []
    for branch, loss in found.losses.items():
        lines += wrap(f"loss of {branch}: {_loss(loss)}", WIDTH, subsequent_indent="  ")
    return lines


def _loss(loss: LossParting) -> str:
    if loss.steps == 0:
        return "no step was logged in both"
    if loss.differs is None:
        return f"equal bit for bit at all {loss.steps} logged steps"
    start = "from the first logged step" if loss.differs == 0 else f"from step {loss.differs}"
    text = f"bits differ {start}; "
    if loss.window == 0:
        return text + f"{loss.steps} logged steps in both are too few to tell noise from more"
    size = f"{loss.difference:+.2g}, noise {loss.noise:.1g} a step, over {loss.window} logged steps"
    if loss.parts is None:
        return text + f"within their noise to the end (B - A there: {size})"
    return text + f"beyond their noise from step {loss.parts} (B - A there: {size})"


def _accuracies(found: Comparison) -> list[str]:
    return [_accuracy(branch, own) for branch, own in found.accuracy.items()]


def _accuracy(branch: str, own: Accuracy) -> str:
    margin = "" if own.margin is None else f" +- {100 * own.margin:.2f}"
    return (
        f"accuracy of {branch}, epoch {own.epoch}: A {100 * own.a:.2f} %, B {100 * own.b:.2f} %, "
        f"{100 * own.gap:+.2f}{margin}"
    )


def _errors(found: Comparison) -> str:
    if not found.errors:
        return "no numeric errors to compare: neither run was monitored (qtrain train --monitor N)"
    shown = found.errors[:_ROWS]
    lines: list[list[str] | str] = [_pair(pair) for pair in shown]
    headers = ["median SQNR in dB", "A", "B", "B - A", "parts\nat step"]
    text = "\n".join(aligned(headers, lines))
    more = len(found.errors) - len(shown)
    return text + (f"\n{more} more rows: --save FILE" if more else "")


def _pair(pair: ErrorPair) -> list[str]:
    figures = [
        "-" if math.isnan(v) else f"{v if abs(v) < LIMIT_DB else math.copysign(math.inf, v):.1f}"
        for v in (pair.a, pair.b)
    ]
    exact = LIMIT_DB in (abs(pair.a), abs(pair.b)) and pair.difference != 0
    gap = math.copysign(math.inf, pair.difference) if exact else pair.difference
    difference = "" if math.isnan(gap) else f"{gap:+.1f}"
    parts = "" if pair.parts is None else str(pair.parts)
    return [f"{pair.layer} {pair.role}", *figures, difference, parts]
