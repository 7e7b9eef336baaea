"""The page around its sections, and the parts that sections are made of: the template's macros."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ...files.terminal import printable
from ...files.whole import write_atomically
from ..numbers import count
from .charts import drawn


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: its id, its heading (text) and what is under it (HTML)."""

    id: str
    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[Section | None]) -> str:
    """A whole page, which may fetch nothing: a policy in its head allows its own style and script
    by their hashes, and no other source.

    title      text;  lead: HTML under it
    sections   in order; None for one of which nothing is known
    """
    style, script = _file("report.css"), _file("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    made = [section for section in sections if section is not None]
    return part("page", title, lead, made, style, script, policy)


def part(name: str, *values: Any) -> str:
    """What a macro of page.html makes of values: HTML, in which text is harmless."""
    return str(getattr(_macros(), name)(*values))


@cache
def _macros() -> Any:
    from jinja2 import Environment, StrictUndefined  # when the first page is made

    def text(value: object) -> object:
        return value if hasattr(value, "__html__") else printable(value, keep="")

    environment = Environment(autoescape=True, finalize=text, undefined=StrictUndefined)
    environment.filters.update(text=text, count=count, drawn=drawn)
    return environment.from_string(_file("page.html")).module


def save(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page atomically; ValueError for a path that does not end in .html."""
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"save: got {str(path)!r}, need a path that ends in .html")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
