"""A run as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..diagnosis.diagnose import diagnose
from ..diagnosis.page_verdict import verdict_section
from ..inspection.page_layers import layers_section
from ..inspection.page_network import network_section
from ..reports.page.shell import Section, page, save
from .curves import errors_section, training_section
from .page_settings import configuration_section, environment_section, recipe_section
from .page_summary import lead, summary_section
from .record import RunRecord


def sections(record: RunRecord) -> Iterator[Section | None]:
    """The sections in order, None for one of which nothing is known; another is one line more."""
    rows = record.errors.rows
    yield summary_section(record)
    if record.monitor:
        yield verdict_section(diagnose(record.monitor), record.errors.layers)
    yield network_section(rows, record.measured)
    yield errors_section(record)
    yield training_section(record)
    yield layers_section(rows, record.monitor)
    yield recipe_section(record)
    yield configuration_section(record)
    yield environment_section(record)


def render(record: RunRecord) -> str:
    """The page: the same record gives the same text."""
    return page(record.name, lead(record), sections(record))


def save_page(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write the page atomically; ValueError for a path that does not end in .html."""
    return save(render(record), path)
