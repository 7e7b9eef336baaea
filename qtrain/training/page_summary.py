"""What a run's page begins with: what was run, what came out, where the errors are largest."""

from __future__ import annotations

from ..inspection.page import Card, measured_on
from ..inspection.page import summary_section as errors_summary
from ..reports.numbers import count
from ..reports.page.shell import Section, part
from .record import RunRecord


def lead(record: RunRecord) -> str:
    """One line on what was run."""
    if record.config is None:
        return measured_on(record.measured)
    c, sessions = record.config, record.environments
    machine = f", on {sessions[-1].get('processor', 'an unknown processor')}" if sessions else ""
    return part("text", [
        "", c.model, " on ", c.data, ", recipe ", c.label,
        f", {count(c.epochs, 'epoch')} in batches of {c.batch_size}, seed {c.seed}{machine}.",
    ])  # fmt: skip


def summary_section(record: RunRecord) -> Section:
    """Figures of the whole run, and the rows of lowest SQNR."""
    remark = ""
    if not record.finished:
        last = max((line["step"] for line in record.steps), default=0)
        remark = (
            f"This run has not come to its end: its last line is of step {last}. There is no "
            "accuracy gap yet, and errors are those of the monitor, if any."
        )
    return errors_summary(
        record.errors.rows, remark=remark, before=_accuracies(record), behind=_times(record)
    )


def _accuracies(record: RunRecord) -> list[Card]:
    found: list[Card] = []
    epochs = "" if record.config is None else f"{record.config.epochs:,}"
    for branch, label in record.labels.items():
        if branch in record.accuracy:
            value = [(f"{100 * record.accuracy[branch]:.2f}", "%")]
            remark = f"after epoch {record.epochs[-1]['epoch']} of {epochs}"
            found.append((f"Test accuracy, {label}", value, remark))
    gap = record.gap
    if gap is not None:
        interval = f"95 % interval [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        remark = f"{interval}, {gap.method}, n = {gap.n:,}"
        found.append(("Accuracy gap", [(f"{100 * gap.value:+.2f}", "points")], remark))
    return found


def _times(record: RunRecord) -> list[Card]:
    if not record.epochs:
        return []
    times = []
    for branch, label in record.labels.items():
        seconds = sum(line["seconds"] for line in record.epochs if line["branch"] == branch)
        times.append((f"{seconds:,.0f}", f"s, {label}"))
    return [("Training steps", times, "evaluation not counted")]
