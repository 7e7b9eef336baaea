"""Names of modules, and of the containers they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def lineage(name: str) -> list[str]:
    """A module's name after those of the containers around it: "a.b.c" -> "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def hits(name: str, patterns: Iterable[str]) -> list[str]:
    """Those of the patterns (fnmatch) that match the name, or that of a container around it."""
    around = lineage(name)
    return [pattern for pattern in patterns if any(fnmatchcase(part, pattern) for part in around)]


def some(names: Sequence[str], most: int) -> str:
    """The first names, so many at the most."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
