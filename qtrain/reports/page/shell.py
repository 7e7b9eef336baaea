"""The page around its sections: head, style, script, navigation."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ...files.whole import write_atomically
from .html import esc


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
    made = [section for section in sections if section is not None]
    style, script = _file("report.css"), _file("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{s.id}">{esc(s.title)}</a></li>' for s in made)
    body = "\n".join(
        f'<section id="{s.id}" aria-labelledby="{s.id}-title">'
        f'<h2 id="{s.id}-title">{esc(s.title)}</h2>\n{s.body}</section>'
        for s in made
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{esc(title)} - qtrain</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{esc(title)}</h1>
{lead}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main" tabindex="-1">
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


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
