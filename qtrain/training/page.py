"""A run as one HTML page: what ran, what came out, and on what it ran."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from ..diagnosis.diagnose import diagnose
from ..diagnosis.verdict import verdict_section
from ..inspection.page import Card, layers_section, measured_on, network_section, summary_section
from ..recipe import SLOTS, Recipe
from ..reports.numbers import count
from ..reports.page.shell import Section, page, part, save
from ..reports.table import Table
from .config import OWN_NORM, TrainConfig, default_of
from .curves import errors_section, training_section
from .page_verdict import remarks, sentence
from .record import RunRecord


def sections(record: RunRecord) -> Iterator[Section | None]:
    """The sections in order, None for one of which nothing is known; another is one line more."""
    rows = record.errors.rows
    yield _summary(record)
    if record.monitor:
        yield verdict_section(diagnose(record.monitor), record.errors.layers)
    yield network_section(rows, record.measured)
    yield errors_section(record)
    yield training_section(record)
    yield layers_section(rows, record.monitor)
    yield _recipe(record)
    yield _configuration(record)
    yield _environment(record)


def render(record: RunRecord) -> str:
    """The page: the same record gives the same text."""
    return page(record.name, _lead(record), sections(record))


def save_page(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write the page atomically; ValueError for a path that does not end in .html."""
    return save(render(record), path)


def _lead(record: RunRecord) -> str:
    """One line on what was run."""
    if record.config is None:
        return measured_on(record.measured)
    c, sessions = record.config, record.environments
    machine = f", on {sessions[-1].get('processor', 'an unknown processor')}" if sessions else ""
    told = part("text", verdict) if (verdict := sentence(record)) else ""
    return told + part("text", [
        "", c.model, " on ", c.data, ", recipe ", c.label,
        f", {count(c.epochs, 'epoch')} in batches of {c.batch_size}, seed {c.seed}{machine}.",
    ])  # fmt: skip


def _summary(record: RunRecord) -> Section:
    """Figures of the whole run, and the rows of lowest SQNR."""
    notes, first = list(remarks(record)), record.diverged
    if not (record.finished or first):
        last = max((line["step"] for line in record.steps), default=0)
        first = (
            f"This run has not come to its end: its last line is of step {last}. There is no "
            "accuracy gap yet, and errors are those of the monitor, if any."
        )
    return summary_section(
        record.errors.rows,
        remarks=[*([first] if first else []), *notes],
        before=_accuracies(record),
        behind=_times(record),
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


def _recipe(record: RunRecord) -> Section | None:
    """Each operand's quantizer, the format of outputs, the norms, and lookups where they follow."""
    if record.config is None:
        return None
    tables = [
        part("table", _recipe_table(record.config, recipe, "" if when == 0 else f", from {when:g}"))
        for when, recipe in record.config.quantizations().items()
    ]
    return Section(id="recipe", title="Recipe", body="".join(tables))


def _recipe_table(config: TrainConfig, recipe: Recipe, when: str) -> Table:
    rows = [[product, operand, _quantizer(recipe, product, operand)] for product, operand in SLOTS]
    rows.append(["every product", "output", recipe.stored_as])
    rows.append(["norms", "", _norm(config, recipe)])
    if recipe.lookup is not None:
        rows.append(["lookups", "", str(recipe.lookup)])
    rows += [[product, "summed in", unit] for product, unit in recipe.summed_in.items()]
    headers = ("product", "operand", "quantizer")
    return _words(f"Recipe {recipe.name}{when}", headers, rows)


def _words(caption: str, headers: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    return Table(caption=caption, headers=headers, lines=lines, kind="words")


def _quantizer(recipe: Recipe, product: str, operand: str) -> str:
    slot = recipe.slots[product, operand]
    return f"as in the forward: {slot.quantizer}" if slot.reused else str(slot.quantizer)


def _norm(config: TrainConfig, recipe: Recipe) -> str:
    if config.norm not in (None, OWN_NORM):
        return f"deviation {config.norm}"
    return "left alone" if recipe.norm is None else str(recipe.norm)


def _configuration(record: RunRecord) -> Section | None:
    """Every field of the configuration, with what it means."""
    if record.config is None:
        return None
    rows, changed = [], []
    for option in fields(TrainConfig):
        value = getattr(record.config, option.name)
        shown = "none" if value in (None, ()) else str(value)
        rows.append([option.name, shown, option.metadata["help"]])
        if value != default_of(option):
            changed.append(rows[-1])
    headers = ("setting", "value", "meaning")
    body = part("table", _words("What is not the default", headers, changed))
    body += part("more", "Every setting", _words("Configuration", headers, rows))
    return Section(id="configuration", title="Configuration", body=body)


def _environment(record: RunRecord) -> Section | None:
    """Versions and machine, a column for each session on another."""
    sessions = record.environments
    if not sessions:
        return None
    names = dict.fromkeys(name for session in sessions for name in session)
    rows = [[name, *(str(session.get(name, "")) for session in sessions)] for name in names]
    heads = ["what", *(f"session {i}" for i in range(1, len(sessions) + 1))]
    if len(sessions) == 1:
        heads[1] = "value"
    table = _words("Versions and machine", heads, rows)
    return Section(id="environment", title="Environment", body=part("table", table))
