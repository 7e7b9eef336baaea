"""What a page begins with: what was run, what came out, where the errors are largest."""

from __future__ import annotations

from ..inspection.page_network import name
from ..reports.page.html import count, decibels, esc, percent, table
from ..reports.page.shell import Section
from .record import RunRecord


def lead(record: RunRecord) -> str:
    """One line on what was run."""
    if record.config is None:
        return f"<p>Each layer and role against full precision, on {esc(record.measured)}.</p>"
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
    if not record.errors.rows:
        remark += '<p class="remark">No error was measured: nothing is quantized, or not yet.</p>\n'
    cards = "".join(
        f'<div><dt>{what}</dt><dd>{value}</dd><dd class="more">{remark}</dd></div>'
        for what, value, remark in _figures(record)
    )
    return Section(
        id="summary",
        title="Summary",
        body=f'{remark}<dl class="cards">{cards}</dl>\n{_largest(record)}',
    )


def _figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """(What, value, remark), HTML all."""
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
    if record.errors.rows:
        (worst,) = record.errors.worst(1)
        value = f"{decibels(worst.sqnr_db)} <small>dB</small>"
        found.append(("Lowest SQNR", value, f"{name(worst.layer)}, {esc(worst.role)}"))
        lost = sum(row.nonfinite > 0 for row in record.errors.rows)
        remark = f"{count(len(record.errors.rows), 'tensor')}, "
        remark += f"{lost} with values that are not finite" if lost else "all finite"
        found.append(("Measured", f"{len(record.errors.layers):,} <small>layers</small>", remark))
    if record.epochs:
        times = [
            f"{sum(e['seconds'] for e in record.epochs if e['branch'] == branch):,.0f} "
            f"<small>s, {esc(label)}</small>"
            for branch, label in record.labels.items()
        ]
        found.append(("Training steps", "<br>".join(times), "evaluation not counted"))
    return found


def _epochs(record: RunRecord) -> str:
    return "" if record.config is None else f"{record.config.epochs:,}"


def _largest(record: RunRecord, most: int = 10) -> str:
    """A table of the rows of lowest SQNR; "" where there is none."""
    if not record.errors.rows:
        return ""
    places = {layer: i for i, layer in enumerate(record.errors.layers)}
    worst = record.errors.worst(most)
    lines = [
        [
            f'<a href="#layer-{places[row.layer]}">{name(row.layer)}</a>',
            esc(row.role),
            decibels(row.sqnr_db),
            f"{row.cosine:.4f}" if row.cosine == row.cosine else "NaN",
            percent(row.clipped),
            percent(row.zeroed),
            percent(row.saturated),
            f"{row.nonfinite:,}",
        ]
        for row in worst
    ]
    headers = ("layer", "role", "SQNR (dB)", "cosine", "clipped (%)", "zeroed (%)",
               "saturated (%)", "not finite")  # fmt: skip
    return table(
        f"Largest errors: {count(len(lines), 'tensor')} of lowest SQNR",
        headers,
        lines,
        words=["role"],
    )
