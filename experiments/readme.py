"""A table between two markers of a README."""

from __future__ import annotations

from pathlib import Path

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"


def held(path: Path) -> str:
    """What stands between the markers."""
    return path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def insert(text: str, into: Path) -> None:
    """Put the text between the file's two markers; SystemExit where it lacks them."""
    before, begin, rest = into.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{into}: need the lines {BEGIN} and {END}")
    into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
