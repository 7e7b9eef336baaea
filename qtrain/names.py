"""Names of modules, and of the containers they lie in."""

from __future__ import annotations


def lineage(name: str) -> list[str]:
    """A module's name after those of the containers around it: "a.b.c" -> "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
