"""CIFAR-10 in its official forms (A. Krizhevsky 2009): binary or Python files, or the archives."""

from __future__ import annotations

import pickletools
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from ..files.whole import read_bytes
from .dataset import DataSet, tensor_data_set, tensors
from .errors import DataError, reason
from .transforms import Augmentation
from .unpack import ERRORS, unpacked

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_MOST = 2**28  # bytes of an unpacked archive; the official ones have 186 million
_PIXELS = 3 * 32 * 32  # red, green, blue planes, each row by row
#: How a pickle writes an integer.
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_binary(data: bytes, source: str) -> Arrays:
    """Records of one label byte and 3,072 pixel bytes -> images (N, 3, 32, 32), labels (N,)."""
    if len(data) == 0 or len(data) % (1 + _PIXELS):
        raise DataError(
            f"{source}: damaged: {len(data)} bytes are no whole number of {1 + _PIXELS}-byte "
            f"records; get it again from {ADDRESS}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0].tolist(), source)


def read_python(data: bytes, source: str) -> Arrays:
    """A pickled {"data": (N, 3072) uint8, "labels": [N]} -> images (N, 3, 32, 32), labels (N,).

    A pickle is a program, and may run anything.  It is not run: pixels and labels stand in it as
    they are, a string of bytes and integers, each behind its name, and are taken from its listing.
    """
    try:
        pixels, labels = _literals(data)
    except Exception as error:  # damaged files fail in many ways, all before any use
        raise DataError(f"{source}: not a readable data file: {error}") from None
    if len(pixels) != len(labels):
        raise DataError(f"{source}: {len(pixels)} images but {len(labels)} labels")
    return pixels.reshape(-1, 3, 32, 32), _labels(labels, source)


def _literals(data: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """The pixels, (N, 3072), and the labels in a pickle; ValueError where there are none."""
    raw, labels = b"", list[int]()
    name, seen = "", set[object]()  # the latest of the two names, and what stands behind "data"
    columns = False  # whether the latest truth value is true: ahead of bytes, their order
    for code, value, _ in pickletools.genops(data):
        if code.name in ("NEWTRUE", "NEWFALSE") or isinstance(value, bool):
            columns = value if isinstance(value, bool) else code.name == "NEWTRUE"
        elif isinstance(value, str | bytes | bytearray):
            text = value.encode("latin1", "replace") if isinstance(value, str) else bytes(value)
            if text in (b"data", b"labels"):
                name = text.decode()
            elif name == "data" and text and len(text) % _PIXELS == 0:
                raw = text
                seen.add("columns" if columns else "rows")
            elif name == "data":
                seen.add(text)
            else:
                name = ""
        elif isinstance(value, int) and code.name in _INTEGERS:
            if name == "labels":
                labels.append(value)
            elif name == "data":
                seen.add(value)
    if not raw or not {b"u1", _PIXELS, "rows"} <= seen or b"F" in seen:
        raise ValueError(f"it holds no 'data' that is an (N, {_PIXELS}) array of bytes, row by row")
    return np.frombuffer(raw, np.uint8).reshape(-1, _PIXELS), labels


def _labels(labels: list[int], source: str) -> NDArray[np.int64]:
    wrong = [y for y in labels if not 0 <= y < len(CLASSES)]
    if wrong:
        raise DataError(f"{source}: label {wrong[0]} is out of range, need 0..{len(CLASSES) - 1}")
    return np.array(labels, dtype=np.int64)


# folder in the archive, the archive, file suffix, reader
_FORMS = (
    ("cifar-10-batches-py", "cifar-10-python.tar.gz", "", read_python),
    ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", read_binary),
)
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def _from_archive(path: Path, folder: str, names: list[str]) -> Mapping[str, bytes]:
    """The files `folder/name` of a compressed archive, read in one pass without unpacking."""
    wanted = {f"{folder}/{name}": name for name in names}
    found = {}
    try:
        with (
            unpacked(path, _MOST) as stream,
            tarfile.open(None, "r|", cast(IO[bytes], stream)) as archive,
        ):
            for member in archive:
                file = archive.extractfile(member) if member.name in wanted else None
                if file is not None:
                    found[wanted[member.name]] = file.read()
    except (tarfile.TarError, *ERRORS) as error:
        raise DataError(f"{path}: damaged ({reason(error)}); get it again from {ADDRESS}") from None
    return found


def load_cifar10(data_dir: Path) -> DataSet:
    """(3, 32, 32) images from the official files; training shifts by up to 4 pixels and flips.

    DataError where files are missing or damaged.
    """
    for folder, archive, suffix, reader in _FORMS:
        names = [name + suffix for name in _BATCHES]
        found: Mapping[str, bytes] = {}
        place = data_dir / archive
        for place in (data_dir / folder, data_dir, data_dir / archive):
            if place.suffix == ".gz" and place.is_file():
                found = _from_archive(place, folder, names)
            elif place.is_dir():
                files = {name: place / name for name in names}
                found = {name: read_bytes(f) for name, f in files.items() if f.is_file()}
            if found:
                break
        if not found:
            continue
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(
                f"cifar10: {', '.join(missing)} missing in {place}, where the other files are; "
                f"get the archive again from {ADDRESS}"
            )
        parts = [reader(found[name], f"{place}/{name}") for name in names]
        return _assemble(parts, [f"{place}/{name}" for name in names])
    raise DataError(
        f"cifar10: found none of {', '.join(n for form in _FORMS for n in form[:2])} in "
        f"{data_dir}; get the Python or the binary version from {ADDRESS}"
    )


def _assemble(parts: list[Arrays], sources: list[str]) -> DataSet:
    counts = [len(labels) for _, labels in parts[:-1]]
    if len(set(counts)) > 1:  # the official files are equally long
        short = counts.index(min(counts))
        raise DataError(
            f"{sources[short]}: damaged: {counts[short]} images, other training files have "
            f"{max(counts)}; get it again from {ADDRESS}"
        )
    train = [np.concatenate(x) for x in zip(*parts[:-1], strict=True)]
    return tensor_data_set(
        "cifar10",
        tensors(train[0], train[1]),
        tensors(*parts[-1]),
        classes=CLASSES,
        augmentation=Augmentation(padding=4, flip=True),
    )
