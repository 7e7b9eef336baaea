"""Files of JSON lines, each of which ends in a checksum of all that the file holds up to it.

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
from typing import Any

from .plain_json import parse

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
