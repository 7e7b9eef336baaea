"""What changed over a run: losses, accuracy, gradients; and the numeric error of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

from ..inspection.roles import ROLES
from ..inspection.rows import MonitorRow
from ..reports.page.charts import Line, line_chart
from ..reports.page.html import count, decibels, esc, short, table
from ..reports.page.shell import Section
from .metrics import number
from .record import RunRecord

#: The most points of an error's curve.
WINDOWS = 60


def training_section(record: RunRecord) -> Section | None:
    """Loss, accuracy, gradient norm and learning rate of each model, and the epochs as a table."""
    if not record.steps and not record.epochs:
        return None
    charts = [
        _chart("Training loss", "cross-entropy", record, "loss", "step", record.steps),
        _chart("Test loss", "cross-entropy", record, "test_loss", "epoch", record.epochs),
        _chart("Test accuracy", "%", record, "test_accuracy", "epoch", record.epochs, times=100),
        _chart("Gradient norm", "norm of all gradients", record, "grad_norm", "step", record.steps),
    ]
    keys = "".join(
        f'<li class="{branch}">{esc(label)}</li>' for branch, label in record.labels.items()
    )
    key = f'<ul class="keys" aria-label="Lines">{keys}</ul>\n'
    return Section(id="training", title="Training", body=key + _grid(charts) + _epochs(record))


def _chart(
    title: str,
    unit: str,
    record: RunRecord,
    name: str,
    x: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    times: float = 1,
) -> str:
    """One line a model: the metric `name`, multiplied, by `x`, which is step or epoch."""
    drawn = []
    for branch, label in record.labels.items():
        points = [
            (float(line[x]), times * number(line[name]))
            for line in lines
            if line["branch"] == branch
        ]
        kind = branch if x == "epoch" else f"{branch} thin"
        drawn.append(Line(label=label, kind=kind, points=points, marks=x == "epoch"))
    return _titled(title, unit, line_chart(title, unit=unit, x=x, lines=drawn))


def _titled(title: str, unit: str, chart: str) -> str:
    if not chart:
        return ""
    return f"<figure><figcaption><b>{esc(title)}</b> {esc(unit)}</figcaption>{chart}</figure>\n"


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>\n'


def _epochs(record: RunRecord) -> str:
    """The epochs in numbers."""
    if not record.epochs:
        return ""
    headers = ["epoch"]
    for label in record.labels.values():
        headers += [f"{label}: train loss", "test loss", "accuracy", "seconds"]
    rows: dict[int, list[str]] = {}
    for line in record.epochs:
        row = rows.setdefault(line["epoch"], [str(line["epoch"])])
        for name, digits in (("train_loss", 4), ("test_loss", 4), ("test_accuracy", 4)):
            value = number(line[name])
            row.append(f"{value:.{digits}f}" if math.isfinite(value) else "NaN")
        row.append(f"{line['seconds']:.1f}")
    lines = [row for row in rows.values() if len(row) == len(headers)]
    return (
        "<details><summary>Epochs in numbers</summary>"
        f"{table('Loss and accuracy of each epoch', headers, lines)}</details>\n"
    )


def errors_section(record: RunRecord) -> Section | None:
    """How the SQNR of each role moved over the run: median, quartiles and lowest of all layers."""
    steps = sorted({row.step for row in record.monitor})
    if len(steps) < 2:
        return None
    charts, lines = [], []
    for role in ROLES:
        rows = [row for row in record.monitor if row.role == role]
        windows = _windows(rows)
        if len(windows) > 1:  # one point is no curve
            charts.append(_titled(role, "dB", _bands(role, windows)))
        if windows:
            lines.append(_line(role, rows, windows))
    headers = ("role", "median at first", "median at last", "lowest", "at step", "in layer")
    return Section(
        id="errors",
        title="Errors over the run",
        body=(
            f"<p>SQNR in dB over {count(len(steps), 'record')}, steps {steps[0]} to {steps[-1]}: "
            "the lowest of all layers, their median, and their quartiles as a band, each layer by "
            "its last record till then.</p>\n"
            '<ul class="keys" aria-label="Lines"><li class="low">lowest</li>'
            '<li class="median">median</li><li class="band">quartiles</li></ul>\n'
            + _grid(charts)
            + table("SQNR in dB of each role over the run", headers, lines, words=["in layer"])
        ),
    )


def _windows(rows: Sequence[MonitorRow]) -> list[tuple[int, list[float]]]:
    """(last step, the last SQNR of each layer till then) of equal stretches of records.

    As many as the layer that was recorded most often has records, up to `WINDOWS`: where layers
    take turns, each has its turn in every stretch.
    """
    steps = sorted({row.step for row in rows})
    if not steps:
        return []
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.layer] = seen.get(row.layer, 0) + 1
    size = -(-len(steps) // min(max(seen.values()), WINDOWS))
    place = {step: i // size for i, step in enumerate(steps)}
    found: dict[int, tuple[int, list[float]]] = {}
    latest: dict[str, float] = {}
    for row in rows:
        latest[row.layer] = row.sqnr_db
        found[place[row.step]] = row.step, list(latest.values())
    return list(found.values())


def _bands(role: str, windows: Sequence[tuple[int, list[float]]]) -> str:
    low, middle, quarters, top = [], [], [], []
    for step, values in windows:
        finite = sorted(value for value in values if math.isfinite(value))
        lost = any(math.isnan(value) or value == -math.inf for value in values)
        low.append((float(step), math.nan if lost or not finite else finite[0]))
        a, b, c = _quartiles(finite)
        middle.append((float(step), b))
        if math.isfinite(b):
            quarters.append((float(step), a))
            top.append(c)
    lines = [
        Line(label="quartiles", kind="band", points=quarters, top=top),
        Line(label="median", kind="median", points=middle),
        Line(label="lowest", kind="low", points=low),
    ]
    return line_chart(f"SQNR of {role}", unit="dB", x="step", lines=lines)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return math.nan, math.nan, math.nan
    if len(values) == 1:
        return values[0], values[0], values[0]
    a, b, c = quantiles(values, n=4, method="inclusive")
    return a, b, c


def _line(
    role: str, rows: Sequence[MonitorRow], windows: Sequence[tuple[int, list[float]]]
) -> list[str]:
    worst = min(rows, key=lambda row: (not math.isnan(row.sqnr_db), row.sqnr_db))
    medians = [
        _quartiles(sorted(v for v in values if math.isfinite(v)))[1]
        for _, values in (windows[0], windows[-1])
    ]
    return [
        esc(role),
        *map(decibels, medians),
        decibels(worst.sqnr_db),
        short(worst.step),
        esc(worst.layer),
    ]
