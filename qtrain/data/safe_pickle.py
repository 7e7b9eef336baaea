"""Reads pickles of plain containers and byte arrays without running anything they name.

Where a pickle names numpy's functions it gets inert stand-ins that only note their arguments;
every other name is refused.  The arrays are then built here from checked fields.  numpy's own
functions would not do: a pickle may have them make arrays of any size, and arrays of objects whose
addresses are bytes of the file, which crash Python where they are read.  Nor would torch's safe
loader, which reads its own archives alone.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from .errors import DataError

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = 1000  # the official files hold about ten


class _Inert:
    """Stands for what a function of numpy makes: it notes its arguments, and its state if any."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Type(_Inert):
    """Stands for numpy.ndarray (only ever passed on) and numpy.dtype (called with its name; byte
    order and the like, its state, say nothing about single bytes)."""


class _Array(_Inert):
    """An array whose state is (version, shape, dtype, Fortran order, bytes)."""


class _Buffer(_Inert):
    """An array of the arguments bytes, dtype, shape, order."""


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes into protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text in another encoding than latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which such a file has no use for; nothing was run"
            ) from None


def _build(value: Any) -> Any:
    """The array that a stand-in stands for; anything else itself."""
    if isinstance(value, _Buffer):
        data, dtype, shape, order = value.arguments
    elif isinstance(value, _Array):
        _, shape, dtype, order, data = value.state
    else:
        return value
    if not isinstance(dtype, _Type) or dtype.arguments[:1] not in (("u1",), (b"u1",)):
        raise pickle.UnpicklingError("an array of another type than uint8")
    if isinstance(data, str):  # Python 2 bytes, read as latin1
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array whose shape or bytes are of another type")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order in (True, "F") else "C")


def _check(data: bytes) -> None:
    """ValueError for what takes more memory, or a deeper recursion, than its bytes tell.

    An index into the unpickler's memory makes it that large; tuples in tuples, thousands deep, are
    hashed by a recursion that nobody bounds.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _PUTS and int(argument or 0) > len(data):
            raise ValueError(f"it numbers {argument} objects in {len(data)} bytes")
        tuples += "TUPLE" in opcode.name
        if tuples > _TUPLES:
            raise ValueError(f"it holds more than {_TUPLES} tuples")


def read_pickle(data: bytes, source: str) -> Any:
    """The pickled object; uint8 arrays may stand in it or be values of its outermost dictionary.

    DataError for anything damaged or that names other code.
    """
    try:
        _check(data)
        content = _Reader(io.BytesIO(data), encoding="bytes").load()
        if isinstance(content, dict):
            return {k: _build(v) for k, v in content.items()}
        return _build(content)
    except Exception as error:  # damaged files fail in many ways, all before any use
        raise DataError(f"{source}: not a readable data file: {error}") from None
