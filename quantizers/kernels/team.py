"""Runs a compiled kernel on the threads that torch itself computes with.

torch's CPU build links an OpenMP runtime.  Entering a parallel region of that same runtime costs
a few microseconds, uses `torch.get_num_threads()` threads and never competes with torch's own.
Where the runtime cannot be reached, and in a forked child (whose copy of it has lost its threads),
a kernel runs on the calling thread.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

#: the process in which torch's threads may live; a fork does not inherit them
_HOME = os.getpid()

#: below this many elements a second thread costs more than it saves
SMALL = 1 << 14


@cache
def openmp() -> Any:
    """The OpenMP runtime of torch's CPU build (GNU interface), or None."""
    folder = Path(torch.__file__).parent / "lib"
    names = [str(path) for path in sorted(folder.glob("libgomp*"))]
    for name in (*names, "libgomp.so.1"):
        try:
            library = ctypes.CDLL(name)
            library.GOMP_parallel.argtypes = [
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint,
            ]  # fmt: skip
            library.GOMP_parallel.restype = None
            return library
        except (OSError, AttributeError):
            continue
    return None


def packed(*words: int) -> bytes:
    """Words as a kernel reads them: a fifth of the time of a ctypes array."""
    return struct.pack(f"{len(words)}q", *words)


def run(address: int, words: bytes, count: int) -> None:
    """Call the kernel at `address` (void (*)(int64 *)) with `words`; it shares `count` elements
    out among the threads of its region."""
    if count >= SMALL and os.getpid() == _HOME:
        library, threads = openmp(), torch.get_num_threads()
        if library and threads > 1:
            library.GOMP_parallel(address, words, threads, 0)
            return
    _entry(address)(words)


@cache
def _entry(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
