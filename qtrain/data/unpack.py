"""Compressed files from anybody: what they hold, up to what such a file can hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files.whole import opened

#: What a damaged or foreign file raises while it is unpacked.
ERRORS = (OSError, EOFError, zlib.error)
_CHUNK = 2**20


class Unpacked:
    """A gzip file as a stream that ends in an error after `most` bytes: deflate packs a thousand
    bytes into one, so that a small file can fill any memory."""

    def __init__(self, file: gzip.GzipFile, most: int) -> None:
        self._file, self._most, self._left = file, most, most

    def read(self, size: int) -> bytes:
        """The next bytes, `size` of them unless the file ends; OSError beyond the most."""
        parts: list[bytes] = []
        while size > 0:  # not at once: `size` may be what a damaged header says
            part = self._file.read(min(size, _CHUNK))
            self._left -= len(part)
            if self._left < 0:
                raise OSError(
                    f"it unpacks to more than {self._most:,} bytes, as no such file "
                    "does; if it is right, unpack it first"
                )
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


@contextmanager
def unpacked(path: Path, most: int) -> Iterator[Unpacked]:
    """The content of a gzip file, of at most `most` bytes; one of `ERRORS` where it is none."""
    with opened(path) as packed, gzip.GzipFile(fileobj=packed) as file:
        yield Unpacked(file, most)
