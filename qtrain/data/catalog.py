"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from .. import checks
from . import cifar, mnist
from .cifar import load_cifar10
from .dataset import DataSet
from .digits import load_digits
from .errors import DataError
from .imagefolder import load_imagefolder
from .mnist import load_mnist
from .text import CONTEXT, load_text

#: What a data set holds, and so which models fit it.
Kind = Literal["images", "text"]

_FROM_FOLDER: dict[str, Callable[[Path], DataSet]] = {"cifar10": load_cifar10, "mnist": load_mnist}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("digits", "imagefolder", *_FROM_FOLDER), "images"),
    "text": "text",
}
#: how to come by those that are no part of the package
_GET = {
    "cifar10": f"get cifar-10-python.tar.gz, or the binary version, from {cifar.ADDRESS}",
    "mnist": f"get train-images-idx3-ubyte.gz and the other three files from {mnist.ADDRESS}",
    "imagefolder": "put images into train/CLASS/ and val/CLASS/ of a folder",
    "text": "take any .txt file, or a folder of them",
}


def names(kind: Kind | None = None) -> list[str]:
    """The names that `load` takes, sorted; of one kind where given."""
    return sorted(name for name in _KINDS if kind in (None, _KINDS[name]))


def kind(name: str) -> Kind:
    """What the data set of that name holds."""
    return _KINDS[name]


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    context: int | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> DataSet:
    """A data set; all but `digits` are read from `data_dir`, a folder (of `text` also a file).

    `image_size` and `cache_dir` are for `imagefolder` (a fixed set accepts its own size), `context`
    (characters in a window, 2 to 65536, default 128) for `text`; `workers` processes decode image
    files, sets that need no decoding start none.  DataError where data is missing or damaged,
    ValueError or TypeError for an unknown name or a setting the set cannot honour.
    """
    checks.choice("data", name, names())
    checks.integer("workers", workers, low=0)
    if image_size is not None:
        checks.integer("image_size", image_size, low=1)
    if context is not None:
        checks.integer("context", context, low=2, high=65536)
    for what, got, needs in (("image_size", image_size, "images"), ("context", context, "text")):
        if got is not None and kind(name) != needs:
            raise ValueError(f"{what}: got {got}, but {name} holds {kind(name)}, not {needs}")
    if cache_dir is not None and name != "imagefolder":
        raise ValueError(f"cache_dir: got {str(cache_dir)!r}, but {name} needs no decoding")
    if name == "digits":
        if data_dir is not None:
            raise ValueError(f"data_dir: got {str(data_dir)!r}, but digits are part of the package")
        return _of_size(load_digits(), image_size)
    place = _place(name, data_dir)
    if name == "text":
        return load_text(place, context=CONTEXT if context is None else context)
    if name == "imagefolder":
        cache = None if cache_dir is None else Path(cache_dir)
        return load_imagefolder(place, size=image_size, workers=workers, cache_dir=cache)
    return _of_size(_FROM_FOLDER[name](place), image_size)


def _place(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Where the data lies; DataError where that is not said or not there."""
    what = "folder or file" if name == "text" else "folder"
    if data_dir is None:
        raise DataError(
            f"{name}: no {what} given; {_GET[name]}, and say where it lies: "
            f"data_dir=PATH, in the shell --data-dir PATH"
        )
    place = Path(data_dir)
    if not place.is_dir() and not (name == "text" and place.exists()):
        raise DataError(f"{name}: looked for the {what} {data_dir}, which does not exist")
    return place


def _of_size(data: DataSet, image_size: int | None) -> DataSet:
    """A set of fixed size; ValueError where another one is asked for."""
    own = data.sizes["image_size"]
    if image_size not in (None, own):
        raise ValueError(
            f"image_size: got {image_size}, but {data.name} images are {own} pixels wide"
        )
    return data
