"""What a run's page begins with: what was run, what came out, where the errors are largest."""

from __future__ import annotations

from ..inspection.page_summary import Card, measured_on
from ..inspection.page_summary import summary_section as errors_summary
from ..reports.page.html import count, esc
from ..reports.page.shell import Section
from .record import RunRecord


def lead(record: RunRecord) -> str:
    """One line on what was run."""
    if record.config is None:
        return measured_on(record.measured)
    c = record.config
    sessions = record.environments
    machine = (
        f", on {esc(sessions[-1].get('processor', 'an unknown processor'))}" if sessions else ""
    )
    return (
        f"<p><b>{esc(c.model)}</b> on <b>{esc(c.data)}</b>, recipe <b>{esc(c.label)}</b>, "
        f"{count(c.epochs, 'epoch')} in batches of {c.batch_size}, seed {c.seed}{machine}.</p>"
    )


def summary_section(record: RunRecord) -> Section:
    """Figures of the whole run, and the rows of lowest SQNR."""
    remark = ""
    if not record.finished:
        last = max((line["step"] for line in record.steps), default=0)
        remark = (
            f'<p class="remark">This run has not come to its end: its last line is of step {last}. '
            "There is no accuracy gap yet, and errors are those of the monitor, if any.</p>\n"
        )
    return errors_summary(
        record.errors.rows, remark=remark, before=_accuracies(record), behind=_times(record)
    )


def _accuracies(record: RunRecord) -> list[Card]:
    found = []
    for branch, label in record.labels.items():
        if branch in record.accuracy:
            value = f"{100 * record.accuracy[branch]:.2f} <small>%</small>"
            remark = f"after epoch {record.epochs[-1]['epoch']} of {_epochs(record)}"
            found.append((f"Test accuracy, {esc(label)}", value, remark))
    gap = record.gap
    if gap is not None:
        value = f"{100 * gap.value:+.2f} <small>points</small>"
        interval = f"95 % interval [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        found.append(("Accuracy gap", value, f"{interval}, {esc(gap.method)}, n = {gap.n:,}"))
    return found


def _times(record: RunRecord) -> list[Card]:
    if not record.epochs:
        return []
    times = [
        f"{sum(e['seconds'] for e in record.epochs if e['branch'] == branch):,.0f} "
        f"<small>s, {esc(label)}</small>"
        for branch, label in record.labels.items()
    ]
    return [("Training steps", "<br>".join(times), "evaluation not counted")]


def _epochs(record: RunRecord) -> str:
    return "" if record.config is None else f"{record.config.epochs:,}"
