"""MNIST in its official idx files, compressed or not (Y. LeCun, C. Cortes, C. Burges)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..files.whole import read_bytes
from .dataset import DataSet, tensor_data_set, tensors
from .errors import DataError, check_range, reason
from .transforms import Augmentation
from .unpack import ERRORS, unpacked

ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # mirrors yann.lecun.com/exdb/mnist
_MOST = 2**30  # bytes of an unpacked file; the largest official one has 47,040,016


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array in an idx file: four bytes (0, 0, 8, dimensions), big-endian sizes, data.

    DataError for another magic number and for a file that is too short or too long.
    """
    try:
        data = _unpacked(path, dimensions) if path.suffix == ".gz" else read_bytes(path)
    except ERRORS as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); get it again from {ADDRESS}"
        ) from None
    magic, header = _magic(dimensions), _header(dimensions)
    if data[:4] != magic:
        got = data[:4].hex() or "an empty file"
        raise DataError(f"{path}: not such an idx file: magic number {got}, need {magic.hex()}")
    shape = _shape(data[:header])
    if len(shape) < dimensions or len(data) - header != math.prod(shape):
        raise DataError(
            f"{path}: damaged: {len(data)} bytes do not hold the sizes {shape} that its header "
            f"states; get it again from {ADDRESS}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _magic(dimensions: int) -> bytes:
    return bytes((0, 0, 8, dimensions))


def _header(dimensions: int) -> int:
    """Bytes ahead of the data."""
    return 4 + 4 * dimensions


def _shape(header: bytes) -> tuple[int, ...]:
    """The sizes that a header states, as many as it holds whole."""
    return tuple(int(n) for n in np.frombuffer(header[4 : len(header) // 4 * 4], ">u4"))


def _unpacked(path: Path, dimensions: int) -> bytes:
    """The content of a compressed file, to its end or to one byte beyond what its header states."""
    with unpacked(path, _MOST) as file:
        header = file.read(_header(dimensions))
        if header[:4] != _magic(dimensions):
            return header
        size = math.prod(_shape(header))
        if size > _MOST:
            raise OSError(f"its header states {size:,} bytes, as no such file has")
        return header + file.read(size + 1)


def _find(folders: list[Path], name: str) -> Path:
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    places = " and ".join(str(folder) for folder in folders)
    raise DataError(
        f"mnist: {name} or {name}.gz is missing; looked in {places}; the four official files are "
        f"at {ADDRESS}"
    )


def _read_split(folders: list[Path], prefix: str) -> tuple[Tensor, Tensor]:
    image_path = _find(folders, f"{prefix}-images-idx3-ubyte")
    label_path = _find(folders, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"mnist: {image_path} holds {len(images)} images but {label_path} holds "
            f"{len(labels)} labels; they do not belong together"
        )
    if labels.size:
        check_range(labels, 10, str(label_path), "label")
    return tensors(images[:, None], labels)


def load_mnist(data_dir: Path) -> DataSet:
    """(1, 28, 28) images from the idx files in `data_dir` or its MNIST/raw; no augmentation."""
    folders = [data_dir, data_dir / "MNIST" / "raw"]
    return tensor_data_set(
        "mnist",
        _read_split(folders, "train"),
        _read_split(folders, "t10k"),
        classes=[str(i) for i in range(10)],
        augmentation=Augmentation(),
    )
