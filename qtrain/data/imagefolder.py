"""A tree `train/<class>/*.jpg` and `val/` or `test/` likewise: ImageNet's layout."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from ..names import some
from .cache import decode_all
from .dataset import DataSet, tensor_data_set
from .decode import SMALL, image_size
from .errors import DataError
from .splits import FileSplit
from .transforms import IMAGENET, Augmentation

#: What names of images end in, in small letters or large: torchvision's IMG_EXTENSIONS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_MEMORY = 4 * 2**30  # bytes; decoded images up to here are held in memory
_LAYOUT = "need train/<class>/*.jpg (or .png, .bmp, .webp ...) and val/<class>/ or test/<class>/"


def _splits(data_dir: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images."""
    if not data_dir.is_dir():
        raise DataError(f"imagefolder: {data_dir} is no folder; {_LAYOUT}")
    tests = [data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()]
    if not (data_dir / "train").is_dir() or not tests:
        there = ", ".join(sorted(p.name for p in data_dir.iterdir())[:8]) or "nothing"
        raise DataError(
            f"imagefolder: train/ or val/ (test/) missing in {data_dir}, which holds {there}; "
            f"{_LAYOUT}; ImageNet is at https://image-net.org/download"
        )
    return data_dir / "train", tests[0]


def load_imagefolder(
    data_dir: Path,
    *,
    size: int | None = None,
    workers: int = 0,
    cache_dir: Path | None = None,
) -> DataSet:
    """(3, size, size) images of a folder tree; the size is that of the images up to 64, else 224.

    Files are found as torchvision's ImageFolder finds them (see `class_images`); a warning names
    what is not read.

    Up to 64 pixels all images are decoded once, into memory or a memory-mapped file in
    `cache_dir` (without one, more than 4 GiB of them are decoded batch by batch), normalised by
    the training images, shifted by up to 4 pixels and flipped.  Larger ones are decoded batch by
    batch by `workers` processes, with ImageNet's constants, random resized crops and flips.
    DataError where something is missing or damaged; ValueError for a `cache_dir` at larger sizes.
    """
    roots = _splits(data_dir)
    (train, odd_train), (test, odd_test) = map(class_images, roots)
    for root, found in zip(roots, (train, test), strict=True):
        if not found:
            raise DataError(f"{root}: holds no class folders; {_LAYOUT}")
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())[:5]
        raise DataError(f"imagefolder: {roots[0]} and {roots[1]} differ in classes: {odd}")
    for root, left_out in zip(roots, (odd_train, odd_test), strict=True):
        if left_out:
            what = f"{len(left_out)} not read, by name no images of a class: {some(left_out, 3)}"
            warnings.warn(f"{root}: {what}", stacklevel=2)
    classes = tuple(train)
    if size is None:
        width, height = image_size(train[classes[0]][0])
        size = min(width, height) if max(width, height) <= SMALL else 224
    small = size <= SMALL
    if cache_dir is not None and not small:
        raise ValueError(f"cache_dir: only for images up to {SMALL} pixels, these are {size}")
    augmentation = Augmentation(padding=4 if small else 0, flip=True)
    files = []
    for root, found in zip(roots, (train, test), strict=True):
        labels = [i for i, paths in enumerate(found.values()) for _ in paths]
        files.append(
            FileSplit(
                paths=[path for paths in found.values() for path in paths],
                labels=torch.tensor(labels, device="cpu"),
                num_classes=len(classes),
                size=size,
                normalisation=IMAGENET,
                augmentation=augmentation,
                workers=workers,
                source=str(root),
            )
        )
    total = sum(len(split) for split in files) * 3 * size**2
    if small and (cache_dir is not None or total <= _MEMORY):
        train_set, test_set = ((decode_all(split, cache_dir), split.labels) for split in files)
        return tensor_data_set(
            "imagefolder", train_set, test_set, classes=classes, augmentation=augmentation
        )
    return DataSet(name="imagefolder", train=files[0], test=files[1], classes=classes)


def class_images(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Each class folder of `root` and the images in it and in all folders below it; and what is not
    read, by its path from there.

    Order is that of torchvision: classes by name; in a class folders by their whole path, in a
    folder files by name.  Links to folders are followed.  Names that begin with a dot are no data.
    DataError for a class without an image, for what has an image's name but is no file, and for a
    link to a folder that it lies in.
    """
    left_out: list[str] = []
    found: dict[str, list[Path]] = {}
    with os.scandir(root) as entries:
        top = sorted(entries, key=lambda entry: entry.name)
    for entry in top:
        if entry.name.startswith(".") or not entry.is_dir():
            left_out.append(entry.name)
            continue
        found[entry.name], others = _below(entry.path)
        left_out += [os.path.relpath(path, root) for path in sorted(others)]
        if not found[entry.name]:
            raise DataError(
                f"{entry.path}: holds no image ({', '.join(SUFFIXES)}); fill or remove it"
            )
    return found, left_out


def _below(root: str) -> tuple[list[Path], list[str]]:
    """The images in a folder and all below it, and what else is there."""
    files: dict[str, list[str]] = {}
    others: list[str] = []
    left: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while left:
        folder, above = left.pop()
        status = os.stat(folder)
        own = (status.st_dev, status.st_ino)
        if own in above:
            raise DataError(f"{folder}: is a link to a folder that it lies in; remove it")
        images = files.setdefault(folder, [])
        with os.scandir(folder) as entries:
            for entry in entries:
                hidden, image = entry.name.startswith("."), entry.name.lower().endswith(SUFFIXES)
                if not hidden and entry.is_dir():
                    left.append((entry.path, above | {own}))
                elif hidden or not image:
                    others.append(entry.path)
                elif entry.is_file():
                    images.append(entry.name)
                else:
                    raise DataError(f"{entry.path}: is no file, or a link to none; remove it")
    found = [Path(folder, name) for folder in sorted(files) for name in sorted(files[folder])]
    return found, others
