"""Text of anybody's on a terminal, which would obey some characters instead of showing them."""

from __future__ import annotations

import sys


def printable(text: object, *, keep: str = "\n") -> str:
    """The text with every character that does not print, but those in `keep`, spelt as in Python.

    Among them are all control characters, which move the cursor, colour, rename or erase, and marks
    that turn the direction of writing.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in plain
    )


def show(text: object) -> None:
    """Print the text."""
    print(printable(text))


def say(text: object) -> None:
    """Print a remark, to stderr."""
    print(printable(text), file=sys.stderr, flush=True)
