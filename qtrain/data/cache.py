"""Decoding a whole split once, into memory or a memory-mapped file."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.whole import opened
from .batches import loaded
from .splits import FileSplit

_CHUNK = 256  # images a worker decodes at a time


def _decode(split: FileSplit, chunk: int) -> Tensor:
    """Images (<= 256, 3, size, size)."""
    indices = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(split)))
    pixels = np.stack([split.decode(i) for i in indices])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode_into(split: FileSplit, out: NDArray[np.uint8]) -> None:
    chunks = range(-(-len(split) // _CHUNK))
    for chunk, images in enumerate(loaded(partial(_decode, split), chunks, split.workers)):
        out[chunk * _CHUNK : chunk * _CHUNK + len(images)] = images.numpy()


def _fingerprint(split: FileSplit) -> str:
    """Changes with the size, and with any file's path, length or time of change."""
    digest = hashlib.sha256(f"2 {split.size}\n".encode())  # 2: the version of the decoding rule
    for path in split.paths:
        stat = path.stat()
        digest.update(f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def decode_all(split: FileSplit, cache_dir: Path | None) -> Tensor:
    """All images of a split, (N, 3, size, size) uint8, decoded by its workers.

    With a `cache_dir` they are decoded only where that folder does not hold them yet, and stay in
    a file that is mapped into memory.  ValueError for a `cache_dir` that cannot be written.
    """
    shape = (len(split), 3, split.size, split.size)
    if cache_dir is None:
        images = np.empty(shape, dtype=np.uint8)
        _decode_into(split, images)
        return torch.from_numpy(images)
    path = cache_dir / f"images-{_fingerprint(split)}.npy"
    if not _is_whole(path, shape):
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            mapped = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        except OSError as error:
            raise ValueError(f"cache_dir: cannot write {path} ({error})") from None
        try:
            _decode_into(split, mapped)
            mapped.flush()
            os.replace(partial, path)  # so that a file of this name is always complete
        finally:
            partial.unlink(missing_ok=True)
    # Copy on write: torch warns about read-only arrays, and the file must stay as it is.
    return torch.from_numpy(np.lib.format.open_memmap(path, "c"))


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file is there with the right type and size; a damaged one is made anew."""
    try:
        with opened(path):  # else the memory map would wait for a pipe
            mapped = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError):
        return False
    return mapped.shape == shape and mapped.dtype == np.uint8
