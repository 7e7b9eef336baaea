"""Data sets by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from .cifar import load_cifar10
from .dataset import DataSet
from .digits import load_digits
from .errors import DataError
from .imagefolder import load_imagefolder
from .mnist import load_mnist

_FROM_FOLDER: dict[str, Callable[[Path], DataSet]] = {"cifar10": load_cifar10, "mnist": load_mnist}


def names() -> list[str]:
    """The names that `load` takes, sorted."""
    return sorted([*_FROM_FOLDER, "digits", "imagefolder"])


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> DataSet:
    """A data set; all but `digits` are read from `data_dir`.

    `image_size` and `cache_dir` are for `imagefolder` (a fixed set accepts its own size);
    `workers` processes decode image files, sets that need no decoding start none.  DataError where
    data is missing or damaged, ValueError for an unknown name or a setting the set cannot honour.
    """
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)
        known = ", ".join(names())
        raise ValueError(f"data: got {name!r}, known: {known}; did you mean {near[0]!r}?")
    _check_integer("workers", workers, 0)
    if image_size is not None:
        _check_integer("image_size", image_size, 1)
    if name == "digits":
        if data_dir is not None:
            raise ValueError(f"data_dir: got {str(data_dir)!r}, but digits are part of the package")
    elif data_dir is None:
        raise DataError(f"{name}: no folder given; say where the data lies (data_dir)")
    elif not Path(data_dir).is_dir():
        raise DataError(f"{name}: looked for the folder {data_dir}, which does not exist")
    if name == "imagefolder" and data_dir is not None:
        cache = None if cache_dir is None else Path(cache_dir)
        return load_imagefolder(Path(data_dir), size=image_size, workers=workers, cache_dir=cache)
    if cache_dir is not None:
        raise ValueError(f"cache_dir: got {str(cache_dir)!r}, but {name} needs no decoding")
    data = load_digits() if data_dir is None else _FROM_FOLDER[name](Path(data_dir))
    if image_size not in (None, data.image_size):
        raise ValueError(
            f"image_size: got {image_size}, but {name} images are {data.image_size} pixels wide"
        )
    return data


def _check_integer(what: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{what}: got {value!r}, need an integer of at least {low}")
