"""What changed over a run: losses, accuracy, gradients; and the numeric error of its layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..inspection.row import ROLES, layers_of, worst_first
from ..inspection.rows import MonitorRow, heats
from ..reports.heat import level_names
from ..reports.numbers import count, decibels, short
from ..reports.page.shell import Section, part
from ..reports.plots import Line, Panel
from ..reports.table import Table
from .metrics import STEP_NUMBERS, number
from .record import RunRecord

#: The most points of an error's curve.
WINDOWS = 60

#: A line of the metrics.
Metrics = Mapping[str, Any]


def training_section(record: RunRecord) -> Section | None:
    """Loss, accuracy, gradient norm and learning rate of each model, and the epochs as a table."""
    if not record.steps and not record.epochs:
        return None
    labels, steps, epochs = record.labels, record.steps, record.epochs
    charts = [
        _panel("Training loss", "cross-entropy", steps, labels, "loss"),
        _panel("Test loss", "cross-entropy", epochs, labels, "test_loss"),
        _panel("Test accuracy", "%", epochs, labels, "test_accuracy"),
        *_late(epochs, labels),
        _panel("Gradient norm", "norm of all gradients", steps, labels, "grad_norm"),
    ]
    body = part("keys", labels) + part("charts", charts)
    if epochs:
        body += part("more", "Epochs in numbers", epoch_table(epochs, labels, seconds=True))
    return Section(id="training", title="Training", body=body)


def epoch_panels(epochs: Sequence[Metrics], labels: Mapping[str, str]) -> list[Panel]:
    """Loss (test and training) and accuracy of each model against the epoch."""
    test = {branch: f"{label}, test" for branch, label in labels.items()}
    training = {branch: f"{label}, training" for branch, label in labels.items()}
    loss = _panel("Loss", "cross-entropy", epochs, test, "test_loss")
    also = _panel("Loss", "cross-entropy", epochs, training, "train_loss")
    accuracy = _panel("Test accuracy", "%", epochs, test, "test_accuracy")
    return [replace(loss, lines=[*loss.lines, *also.lines]), accuracy]


def _panel(
    title: str, unit: str, metrics: Sequence[Metrics], labels: Mapping[str, str], name: str
) -> Panel:
    """One line a model: the metric `name`, accuracies in %, by step or epoch."""
    x = "step" if name in STEP_NUMBERS else "epoch"
    thin = x == "step" or name == "train_loss"
    lines = []
    for branch, label in labels.items():
        points = metric_points([line for line in metrics if line["branch"] == branch], name, unit)
        kind = f"{branch} thin" if thin else branch
        lines.append(Line(label=label, kind=kind, points=points, marks=not thin))
    return Panel(title=title, unit=unit, x=x, lines=lines, log="" if unit == "%" else "y")


def _late(epochs: Sequence[Metrics], labels: Mapping[str, str]) -> list[Panel]:
    """The accuracy of the second half, of which the first leaves little room; of four epochs on."""
    last = max((line["epoch"] for line in epochs), default=0)
    half = [line for line in epochs if 2 * line["epoch"] > last]
    title = "Test accuracy, second half"
    return [_panel(title, "%", half, labels, "test_accuracy")] if last > 3 else []


def metric_points(metrics: Sequence[Metrics], name: str, unit: str) -> list[tuple[float, float]]:
    """(step or epoch, the metric `name`) of each line, in % where that is the unit."""
    x, times = "step" if name in STEP_NUMBERS else "epoch", 100 if unit == "%" else 1
    return [(float(line[x]), times * number(line[name])) for line in metrics]


def epoch_table(
    epochs: Sequence[Metrics], labels: Mapping[str, str], *, seconds: bool = False
) -> Table:
    """Training loss, test loss and test accuracy of each model, a line an epoch that all ended."""
    headers, lines = ["epoch"], dict[int, list[str]]()
    for label in labels.values():
        headers += [f"{label}:\ntrain loss", "test loss", "accuracy", *["seconds"] * seconds]
    for epoch in epochs:
        line = lines.setdefault(epoch["epoch"], [str(epoch["epoch"])])
        values = [number(epoch[name]) for name in ("train_loss", "test_loss", "test_accuracy")]
        line += [f"{value:.4f}" if math.isfinite(value) else "NaN" for value in values]
        line += [f"{epoch['seconds']:.1f}"] * seconds
    whole = [line for line in lines.values() if len(line) == len(headers)]
    return Table(caption="Loss and accuracy of each epoch", headers=headers, lines=whole)


def errors_section(record: RunRecord) -> Section | None:
    """How the SQNR of each role moved over the run: median, quartiles and lowest of all layers."""
    steps = sorted({row.step for row in record.monitor})
    if len(steps) < 2:
        return None
    charts, lines = [], []
    for role in ROLES:
        rows = [row for row in record.monitor if row.role == role]
        if not rows:
            continue
        curve, worst = _curve(rows), worst_first(rows)[0]
        if len(curve) > 1:  # one point is no curve
            charts.append(_bands(role, curve))
        medians = decibels(curve[0].median), decibels(curve[-1].median)
        lowest = decibels(worst.sqnr_db), short(worst.step), worst.layer
        lines.append([role, *medians, *lowest])
    table = Table(
        caption="SQNR in dB of each role over the run", lines=lines, words=["in layer"],
        headers=("role", "median at first", "median at last", "lowest", "at step", "in layer"),
    )  # fmt: skip
    text = (
        f"SQNR in dB over {count(len(steps), 'record')}, steps {steps[0]} to {steps[-1]}: the "
        "lowest of all layers, their median, and their quartiles as a band, each layer by its last "
        "record till then."
    )
    keys = {"low": "lowest", "median": "median", "band": "quartiles"}
    maps = heats(record.monitor, layers_of(record.monitor), [line[0] for line in lines], WINDOWS)
    body = part("text", [text]) + part("keys", keys) + part("charts", charts) + part("table", table)
    told = "The same of every layer, a line each in network order, by its last record till then."
    body += part("text", [told]) + part("legend", level_names().items()) + part("heats", maps)
    return Section(id="errors", title="Errors over the run", body=body)


class _Point(NamedTuple):
    """The SQNR of all layers at a step: NaN where none is finite, the lowest where one is lost."""

    step: float
    low: float
    quarter: float
    median: float
    top: float


def _curve(rows: Sequence[MonitorRow]) -> list[_Point]:
    """A point at the end of each of equal stretches of records, each layer by its last till then.

    As many as the layer that was recorded most often has records, up to `WINDOWS`: where layers
    take turns, each has its turn in every stretch.
    """
    steps = sorted({row.step for row in rows})
    size = -(-len(steps) // min(max(Counter(row.layer for row in rows).values()), WINDOWS))
    place = {step: i // size for i, step in enumerate(steps)}
    latest: dict[str, float] = {}
    found: list[_Point] = []
    for i, row in enumerate(rows):
        latest[row.layer] = row.sqnr_db
        if i + 1 == len(rows) or place[rows[i + 1].step] != place[row.step]:
            values = [value for value in latest.values() if value != math.inf]
            finite = [value for value in values if math.isfinite(value)] or [math.nan]
            low = min(finite) if len(finite) == len(values) else math.nan
            quartiles = np.quantile(finite, (0.25, 0.5, 0.75)).tolist()
            found.append(_Point(float(row.step), low, *quartiles))
    return found


def _bands(role: str, curve: Sequence[_Point]) -> Panel:
    known = [point for point in curve if math.isfinite(point.median)]
    lines = [
        Line(
            label="quartiles", kind="band",
            points=[(point.step, point.quarter) for point in known],
            top=[point.top for point in known],
        ),
        Line(label="median", kind="median", points=[(p.step, p.median) for p in curve]),
        Line(label="lowest", kind="low", points=[(p.step, p.low) for p in curve]),
    ]  # fmt: skip
    return Panel(title=role, text=f"SQNR of {role}", unit="dB", x="step", lines=lines)
