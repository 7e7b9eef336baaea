"""Tables: as text of 80 columns, or in a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from ..files.terminal import printable

#: Columns of a terminal.
WIDTH = 80
#: Text, or (module path, where it leads in a page or "").
Cell = str | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines of cells under headers.

    headers   a line break is one in text, too
    lines     of cells, the first a heading; in text a line may be one string
    caption   what it shows, in a page;  kind: there "numbers", flush right but for the columns
              whose headers are in `words`, or "words"
    """

    headers: Sequence[str]
    lines: Sequence[Sequence[Cell] | str]
    caption: str = ""
    kind: str = "numbers"
    words: Sequence[str] = ()

    def text(self) -> str:
        """Columns under their headers, the first flush left.  A line that is one string, and a
        first cell that is too long for its column, stands above and is broken at 80 columns."""
        lines = [
            [printable(cell, keep="") for cell in ([line] if isinstance(line, str) else line)]
            for line in self.lines
        ]
        cells = [line for line in lines if len(line) > 1]
        above = [header.split("\n") for header in self.headers]
        height = max(map(len, above))
        top = [[""] * (height - len(parts)) + parts for parts in above]
        columns = zip(*cells, *zip(*top, strict=True), strict=True)
        first, *others = (max(map(len, column)) for column in columns)
        gap = 2 if first + sum(others) + 2 * len(others) <= WIDTH else 1
        room = max(WIDTH - sum(others) - gap * len(others), len(self.headers[0]))
        names = [above[0][-1], *(line[0] for line in cells)]
        first = max(len(name) for name in names if len(name) <= room)

        def line(name: str, rest: Sequence[str]) -> str:
            parts = [part.rjust(size) for part, size in zip(rest, others, strict=True)]
            return (" " * gap).join([name.ljust(first), *parts]).rstrip()

        found = [line(name, rest) for name, *rest in zip(*top, strict=True)]
        found.append(line("-" * first, ["-" * size for size in others]))
        for name, *rest in lines:
            if len(name) > first or not rest:
                found += wrap(name, WIDTH) or [""]
                name = ""
            if rest:
                found.append(line(name, rest))
        return "\n".join(found)


def wrapped(text: str) -> list[str]:
    """A remark in lines of 80 columns, the second and all after it further in."""
    return wrap(printable(text, keep=""), WIDTH, subsequent_indent="  ")
