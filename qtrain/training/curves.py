"""What changed over a run: losses, accuracy, gradients; and the numeric error of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..inspection.roles import ROLES
from ..inspection.rows import MonitorRow
from ..reports.numbers import count, decibels, short
from ..reports.page.shell import Section, part
from ..reports.panels import Line, Panel
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
    times, thin = 100 if unit == "%" else 1, x == "step" or name == "train_loss"
    lines = []
    for branch, label in labels.items():
        points = [
            (float(line[x]), times * number(line[name]))
            for line in metrics
            if line["branch"] == branch
        ]
        kind = f"{branch} thin" if thin else branch
        lines.append(Line(label=label, kind=kind, points=points, marks=not thin))
    return Panel(title=title, unit=unit, x=x, lines=lines)


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
        windows = _windows(rows)
        if len(windows) > 1:  # one point is no curve
            charts.append(_bands(role, windows))
        if windows:
            lines.append(_line(role, rows, windows))
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
    body = part("text", [text]) + part("keys", keys) + part("charts", charts) + part("table", table)
    return Section(id="errors", title="Errors over the run", body=body)


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


def _bands(role: str, windows: Sequence[tuple[int, list[float]]]) -> Panel:
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
    return Panel(title=role, text=f"SQNR of {role}", unit="dB", x="step", lines=lines)


def _quartiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist() if values else [math.nan] * 3


def _line(
    role: str, rows: Sequence[MonitorRow], windows: Sequence[tuple[int, list[float]]]
) -> list[str]:
    worst = min(rows, key=lambda row: (not math.isnan(row.sqnr_db), row.sqnr_db))
    medians = [
        _quartiles(sorted(v for v in values if math.isfinite(v)))[1]
        for _, values in (windows[0], windows[-1])
    ]
    return [
        role,
        *map(decibels, medians),
        decibels(worst.sqnr_db),
        short(worst.step),
        worst.layer,
    ]
