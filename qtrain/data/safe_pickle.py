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
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = 1000  # the official files hold about ten


class _Type:
    """Stands for numpy.ndarray (only ever passed on) and numpy.dtype (called with its name)."""

    def __init__(self, name: object = "", *flags: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like say nothing about single bytes."""


class _Array:
    """Stands for an array: its state is (version, shape, dtype, Fortran order, bytes)."""

    fields: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.fields = state[1:] if isinstance(state, tuple) else ()


def _reconstruct(*arguments: object) -> _Array:
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.fields = (shape, dtype, order == "F", data)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes into protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text in another encoding than latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
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


def _build(array: _Array) -> NDArray[np.uint8]:
    if len(array.fields) != 4:
        raise pickle.UnpicklingError("an array without its fields")
    shape, dtype, fortran, data = array.fields
    if not isinstance(dtype, _Type) or dtype.name != "u1":
        raise pickle.UnpicklingError("an array of another type than uint8")
    if isinstance(data, str):  # Python 2 bytes, read as latin1
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array whose shape or bytes are of another type")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


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
        if isinstance(content, _Array):
            return _build(content)
        if isinstance(content, dict):
            return {k: _build(v) if isinstance(v, _Array) else v for k, v in content.items()}
        return content
    except (
        pickle.UnpicklingError,
        struct.error,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(f"{source}: not a readable data file: {error}") from None
