"""Tables of text, 80 columns wide."""

from __future__ import annotations

from tabulate import tabulate

from ..files.terminal import printable

WIDTH = 80


def tabulated(table: list[list[str]], headers: list[str]) -> str:
    """Names and numbers: a name that is too long for its column goes on in the next line."""
    table = [[printable(cell) for cell in row] for row in table]
    # tabulate leaves two columns between columns, and two more beside a heading
    sizes = [
        max(*(len(line) + 2 for line in headers[i].split("\n")), *(len(row[i]) for row in table))
        for i in range(1, len(headers))
    ]
    room = WIDTH - sum(2 + size for size in sizes)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(
        table, headers, tablefmt="simple", colalign=align, disable_numparse=True,
        maxcolwidths=[room, *[None] * (len(headers) - 1)],
    )  # fmt: skip
