"""The examples of a page: its Python blocks, run in order in one namespace, and what each prints,
which a `text` block behind it shows.

`python tests/pages.py docs/tutorials/NAME.md ...` runs pages and writes what they print into them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: a Python block, and the output that follows it
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def outputs(text: str, page: str, names: dict[str, Any] | None = None) -> Iterator[str]:
    """What each example of a page prints; runs them in the working directory."""
    names = {} if names is None else names
    for block, _ in EXAMPLE.findall(text):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, page, "exec"), names)
        lines = (line.rstrip() for line in printed.getvalue().splitlines())
        yield "\n".join(lines) + "\n" if printed.getvalue() else ""


def shape(text: str) -> list[str]:
    """The words of an output in order of the alphabet, without its numbers, whose last digits are
    those of a machine, and with them the order of rows that are nearly alike."""
    text = re.sub(r"[-+]?\b(?:\d[\d.,]*(?:e[-+]?\d+)?|inf|nan)\b", "#", text)
    return sorted(re.sub(r"-{2,}", " ", text).split())


def written(text: str, page: str) -> str:
    """The page with what its examples print."""
    printed = outputs(text, page)

    def example(found: re.Match[str]) -> str:
        said = next(printed)
        return f"```python\n{found[1]}```\n" + (f"\n```text\n{said}```\n" if said else "")

    return EXAMPLE.sub(example, text)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for path in [Path(name).resolve() for name in sys.argv[1:]]:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            path.write_text(written(path.read_text(encoding="utf-8"), str(path)), encoding="utf-8")
