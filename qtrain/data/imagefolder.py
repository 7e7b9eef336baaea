"""A tree `train/<class>/*.jpg` and `val/` or `test/` likewise: ImageNet's layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..names import some
from .cache import decode_all
from .dataset import DataSet
from .decode import SMALL, image_size
from .errors import DataError
from .splits import FileSplit, TensorSplit
from .transforms import IMAGENET, Augmentation, normalisation_of
from .tree import class_images

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
                augmentation=Augmentation(padding=4 if small else 0, flip=True),
                workers=workers,
                source=str(root),
            )
        )
    splits: Sequence[FileSplit | TensorSplit] = files
    total = sum(len(split) for split in files) * 3 * size**2
    if small and (cache_dir is not None or total <= _MEMORY):
        splits = _in_memory(files, cache_dir)
    return DataSet(name="imagefolder", train=splits[0], test=splits[1], classes=classes)


def _in_memory(files: list[FileSplit], cache_dir: Path | None) -> list[TensorSplit]:
    images = [decode_all(split, cache_dir) for split in files]
    normalisation = normalisation_of(images[0])
    return [
        TensorSplit(
            images=decoded,
            labels=split.labels,
            num_classes=split.num_classes,
            normalisation=normalisation,
            augmentation=split.augmentation,
            source=split.source,
        )
        for decoded, split in zip(images, files, strict=True)
    ]
