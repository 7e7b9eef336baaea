"""The sections of a page, in order; another is one function more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from qtrain.files.whole import write_atomically

from ...diagnosis.page_verdict import verdict_section
from ...inspection.page_layers import layers_section
from ...inspection.page_network import network_section
from ...training.page_curves import errors_section, training_section
from ...training.page_settings import configuration_section, environment_section, recipe_section
from ...training.page_summary import lead, summary_section
from ...training.record import RunRecord
from .shell import Section, page

#: Each makes a section of what is known, or none where nothing is known for it.
SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    summary_section,
    verdict_section,
    network_section,
    errors_section,
    training_section,
    layers_section,
    recipe_section,
    configuration_section,
    environment_section,
)


def render(record: RunRecord) -> str:
    """The page: the same record gives the same text."""
    made = [make(record) for make in SECTIONS]
    return page(record.name, lead(record), [section for section in made if section is not None])


def save_page(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write the page atomically; ValueError for a path that does not end in .html."""
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .html")
    text = render(record)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
