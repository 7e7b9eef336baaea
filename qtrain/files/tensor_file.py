"""Files of tensors and plain data, as torch.save writes them, from anybody."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch

from .whole import opened


class Damaged(ValueError):
    """A file whose entries are not what torch.save writes."""


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What is in the file, its tensors on the CPU, once every entry's checksum is right: torch.load
    checks none.  No code in the file is run.

    Damaged where a checksum is wrong, and for a small file that would fill the memory.  OSError
    where it cannot be opened or is no regular file; torch's and zipfile's own errors for others.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_entries(file, size)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    if _entries(content, size) > size:
        raise Damaged("damaged: it holds the same entries over and over")
    return content


def is_plain(value: object) -> bool:
    """Whether such a file holds it, and gives it back without running code."""
    if type(value) is dict:
        return all(type(k) in (str, int) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))  # type: ignore[call-overload]
    kinds = (bool, int, float, str, torch.Tensor, torch.nn.Parameter)
    return value is None or type(value) in kinds


def _check_entries(file: IO[bytes], size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # as torch writes them; else some kilobytes unpack to as many gigabytes
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Damaged("damaged: its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise Damaged("damaged: its entries are larger than the file")
        wrong = archive.testzip()
    if wrong is not None:
        raise Damaged(f"damaged: the checksum of its entry {wrong} is wrong")


def _entries(content: object, most: int) -> int:
    """How many entries dictionaries and lists hold, at all depths, counted to beyond `most`.

    Each takes a byte of the file and more, unless a container is in several places: then a few
    bytes may stand for more than the memory holds.
    """
    count, left = 0, [content]
    while left and count <= most:
        value = left.pop()
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
            count += len(value)
        elif isinstance(value, list | tuple | set):
            left += value
            count += len(value)
    return count
