"""What differs between two runs, as text of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap

from ..files.terminal import printable
from ..hardware.environment import DECISIVE
from ..reports.table import WIDTH, Table, wrapped
from .config import NOT_COMPARED
from .pairs import LIMIT_DB, Accuracy, ErrorPair, Losses

#: How many rows of errors are printed; `save` writes them all.
_ROWS = 20


def settings_text(
    settings: Mapping[str, tuple[object, object]],
    versions: Mapping[str, tuple[object, object]],
    same_samples: bool,
) -> str:
    """Settings and versions that differ, and whether the samples are the same."""
    telling = {n: v for n, v in settings.items() if n not in NOT_COMPARED}
    decisive = {n: v for n, v in versions.items() if n in DECISIVE}
    lines = [
        *_table("what is computed", telling),
        *_table("where and how", {n: v for n, v in settings.items() if n not in telling}),
        *_table("can change bits", decisive),
        *_table("other versions", {n: v for n, v in versions.items() if n not in decisive}),
    ] or ["configuration and versions are the same"]
    samples = "both train on the same samples in the same order" if same_samples else (
        "not the same samples in the same order (data, batch_size or seed differ)"
    )  # fmt: skip
    return "\n".join([*lines, samples])


def _table(title: str, rows: Mapping[str, tuple[object, object]]) -> list[str]:
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
    return [Table(headers=[title, "A", "B"], lines=cells).text()]


def _shown(value: object) -> str:
    return "default" if value is None else printable(value)


def losses_text(losses: Mapping[str, Losses]) -> str:
    """From which step the losses differ, a line a branch."""
    if not losses:
        return "no branch was trained in both: no losses to compare"
    lines = [wrapped(f"loss of {branch}: {_loss(loss)}") for branch, loss in losses.items()]
    return "\n".join(part for own in lines for part in own)


def _loss(loss: Losses) -> str:
    if loss.steps == 0:
        return "no step was logged in both"
    if loss.differs is None:
        return f"equal bit for bit at all {loss.steps} logged steps"
    start = "the first" if loss.differs == 0 else f"step {loss.differs}"
    return f"bits differ from {start} of {loss.steps} logged steps"


def accuracies_text(accuracy: Mapping[str, Accuracy]) -> str:
    """Both accuracies and the gap, a line a branch."""
    lines = []
    for branch, own in accuracy.items():
        both = f"A {100 * own.a:.2f} %, B {100 * own.b:.2f} %, {100 * own.gap:+.2f}"
        margin = "" if own.margin is None else f" +- {100 * own.margin:.2f}"
        lines.append(f"accuracy of {branch}, epoch {own.epoch}: {both}{margin}")
    return "\n".join(lines)


def errors_text(errors: Sequence[ErrorPair]) -> str:
    """The errors, the worst first."""
    if not errors:
        return "no numeric errors to compare: neither run was monitored (qtrain train --monitor N)"
    shown = errors[:_ROWS]
    headers = ["median SQNR in dB", "A", "B", "B - A"]
    text = Table(headers=headers, lines=[_pair(pair) for pair in shown]).text()
    more = len(errors) - len(shown)
    return text + (f"\n{more} more rows: --save FILE" if more else "")


def _pair(pair: ErrorPair) -> list[str]:
    figures = [
        "-" if math.isnan(v) else f"{v if abs(v) < LIMIT_DB else math.copysign(math.inf, v):.1f}"
        for v in (pair.a, pair.b)
    ]
    exact = LIMIT_DB in (abs(pair.a), abs(pair.b)) and pair.difference != 0
    gap = math.copysign(math.inf, pair.difference) if exact else pair.difference
    difference = "" if math.isnan(gap) else f"{gap:+.1f}"
    return [f"{pair.layer} {pair.role}", *figures, difference]
