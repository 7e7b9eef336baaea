"""JSON from anybody: plain values, or one ValueError, whatever it holds; and files of JSON lines,
each of which ends in a checksum of all that the file holds up to it.

A line stays plain JSON: its last field, "crc", is the CRC-32 (ISO 3309, as of `zlib.crc32`), in
eight hexadecimal digits, of every byte of the file before the comma in front of that field.  So a
changed, missing, doubled or swapped line shows in it and in all that follow; that lines are missing
at the end is for the reader to know.  Files written before there were checksums have none: lines
without are taken as they are, but only ahead of the first that has one.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
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


_FIELD = "crc"
_END = re.compile(rb', "crc": "([0-9a-f]{8})"\}')
_END_LENGTH = len(b', "crc": "01234567"}')


def line(values: Mapping[str, Any], before: int) -> tuple[bytes, int]:
    """One line of some values, and the checksum of the file with it.

    before   that of the file so far; of an empty one 0

    ValueError for NaN and infinities, which JSON has not.
    """
    body = json.dumps(dict(values), allow_nan=False).encode()[:-1]
    checksum = zlib.crc32(body, before)
    end = f', "{_FIELD}": "{checksum:08x}"}}\n'.encode()
    return body + end, zlib.crc32(end, checksum)


def lines(content: bytes) -> tuple[list[Any], int]:
    """The values of every line without its checksum, and the checksum of the content.

    ValueError for what is no JSON, and where a checksum is wrong or missing.
    """
    found: list[Any] = []
    checksum, checked = 0, False
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        value, body = parse(text), text.rstrip(b"\r\n")
        end = _END.fullmatch(body, max(len(body) - _END_LENGTH, 0))
        if end is not None:
            checked = True
            if int(end[1], 16) != zlib.crc32(body[: end.start()], checksum):
                raise ValueError(f"the checksum of line {number} is wrong")
            del value[_FIELD]
        elif checked or (isinstance(value, dict) and _FIELD in value):
            raise ValueError(f"line {number} has no checksum, or not as its last field")
        found.append(value)
        checksum = zlib.crc32(text, checksum)
    return found, checksum
