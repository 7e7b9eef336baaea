"""A report as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..reports.page.shell import page, save
from .page_layers import layers_section
from .page_network import network_section
from .page_summary import measured_on, summary_section
from .row import Row


def save_page(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write the errors of one batch as a page, atomically; ValueError for a path that does not end
    in .html."""
    measured = "one batch"
    sections = summary_section(rows), network_section(rows, measured), layers_section(rows)
    return save(page("Numeric error", measured_on(measured), sections), path)
