"""JSON from anybody: plain values, or one ValueError, whatever it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from .whole import read_bytes

_Kind = TypeVar("_Kind")

_LONG = re.compile(r"[0-9]{19}")


def parse(text: str | bytes) -> Any:
    """The value of JSON in UTF-8.

    ValueError for other text, for what is nested more deeply than Python can follow, and for
    integers beyond 64 bits, which no reader of ours holds and no float may.
    """
    try:
        plain = text if isinstance(text, str) else text.decode("utf-8-sig")
        # a hook takes time for each integer of a file: only where one can be so long
        return json.loads(plain, parse_int=_integer if _LONG.search(plain) else None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read(path: Path, kind: type[_Kind]) -> _Kind:
    """The value of a file; ValueError, which names the file, unless it is JSON of this kind."""
    try:
        content = parse(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON; restore or delete it") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: holds no {kind.__name__}; restore or delete it")
    return content


def _integer(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"an integer of {len(digits)} digits is beyond 64 bits")
    return value
