"""Text of anybody's on a terminal, which would obey some characters instead of showing them."""

from __future__ import annotations

import os
import sys
from typing import TextIO


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


def draws(stream: TextIO) -> bool:
    """Whether it is a terminal that can draw a bar: one that has columns."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # not one of the system's
        return True


def show(text: object) -> None:
    """Print the text."""
    print(printable(text))


def say(text: object) -> None:
    """Print a remark, to stderr."""
    print(printable(text), file=sys.stderr, flush=True)
