"""What ran, and on what: recipe, configuration, versions and machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from ..recipe import SLOTS, Recipe
from ..reports.page.shell import Section, part
from ..reports.table import Table
from .config import OWN_NORM, TrainConfig, default_of
from .record import RunRecord


def recipe_section(record: RunRecord) -> Section | None:
    """Each operand's quantizer, the format of outputs, and the norms."""
    if record.config is None:
        return None
    recipe = record.config.quantization()
    rows = [[product, operand, _quantizer(recipe, product, operand)] for product, operand in SLOTS]
    kept = f"{recipe.activation}{', kept in 16 bits' if recipe.narrow else ''}"
    rows.append(["every product", "output", kept if recipe.activation else "not rounded"])
    rows.append(["norms", "", _norm(record.config, recipe)])
    if recipe.grad_weight.unit != "fp32":
        rows.append(["grad_weight", "unit", recipe.grad_weight.unit])
    headers = ("product", "operand", "quantizer")
    table = _words(f"Recipe {recipe.name}", headers, rows)
    return Section(id="recipe", title="Recipe", body=part("table", table))


def _words(caption: str, headers: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    return Table(caption=caption, headers=headers, lines=lines, kind="words")


def _quantizer(recipe: Recipe, product: str, operand: str) -> str:
    slot = recipe.slots[product, operand]
    return f"as in the forward: {slot.quantizer}" if slot.reused else str(slot.quantizer)


def _norm(config: TrainConfig, recipe: Recipe) -> str:
    if config.norm not in (None, OWN_NORM):
        return f"deviation {config.norm}"
    return "left alone" if recipe.norm is None else str(recipe.norm)


def configuration_section(record: RunRecord) -> Section | None:
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


def environment_section(record: RunRecord) -> Section | None:
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
