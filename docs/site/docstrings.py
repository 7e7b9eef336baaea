"""Docstrings as Markdown: their tables of "name   meaning", their columns, their names."""

from __future__ import annotations

import re
from typing import Any

import griffe

import qtrain
import quantizers

#: `name` in a docstring -> what its page calls it
KNOWN = {
    name: f"{module.__name__}.{name}" for module in (quantizers, qtrain) for name in module.__all__
}
NAME = r"[A-Za-z_][\w.]*(?:\(\w*\))?(?:, (?:[A-Za-z_][\w.]*|\.\.\.))*"
ROW = re.compile(rf"({NAME})  +(?=\S)")


def escape(text: str) -> str:
    """Text of a docstring, in which only backticks mean anything."""
    parts = re.split(r"(`[^`]+`)", text)
    for place, part in enumerate(parts):
        if place % 2:
            known = KNOWN.get(part.strip("`"))
            parts[place] = f"[{part}][{known}]" if known else part
        else:
            parts[place] = re.sub(r"([*_<>\[\]|#])", r"\\\1", part)
    return "".join(parts)


def code(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```"])


def in_columns(lines: list[str]) -> bool:
    """Whether spaces within lines mean something, other than the end of a sentence."""
    return any(re.search(r"[^\s.;:] {2,}\S|\S {3,}\S", line) for line in lines)


def rows(lines: list[str]) -> list[tuple[str, list[str]]] | None:
    """The rows of a table of names and meanings, each with its lines, or None for another text."""
    if not ROW.match(lines[0]):
        return None
    column, found = ROW.match(lines[0]).end(), []  # type: ignore[union-attr]
    for line in lines:
        row = ROW.match(line)
        short = re.fullmatch(NAME, line[: column - 1]) and line[column - 1 : column] == " "
        if row:
            found.append((row[1], [line[row.end() :]]))
        elif short:
            found.append((line[: column - 1], [line[column:]]))
        elif line.startswith("  "):
            found[-1][1].append(line[min(column, len(line) - len(line.lstrip())) :])
        else:
            return None
    return found


def paragraph(lines: list[str]) -> str:
    table = rows(lines)
    if table:
        return "\n\n".join(f"`{name}`\n\n{definition(said)}" for name, said in table)
    if all(line.startswith("    ") for line in lines):
        return code([line[4:] for line in lines])
    if in_columns(lines):
        return code(lines)
    text = [line for line in lines if not line.startswith("  ")]
    if len(text) == len(lines):
        return escape("\n".join(lines))
    parts, shown = [], [[lines[0]]]
    for line in lines[1:]:
        if line.startswith("  ") == shown[-1][0].startswith("  "):
            shown[-1].append(line)
        else:
            shown.append([line])
    for part in shown:
        parts.append(code(part) if part[0].startswith("  ") else escape("\n".join(part)))
    return "\n\n".join(parts)


def definition(lines: list[str]) -> str:
    """A meaning as the body of a definition list's entry."""
    text = code(lines) if in_columns(lines) else escape("\n".join(lines))
    return ":   " + text.replace("\n", "\n    ")


def markdown(text: str) -> str:
    return "\n\n".join(
        paragraph(part.splitlines()) for part in re.split(r"\n\s*\n", text) if part.strip()
    )


class Docstrings(griffe.Extension):
    """Every docstring that is shown, rewritten once."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
