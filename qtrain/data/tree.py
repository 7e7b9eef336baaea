"""The image files of a tree of class folders, found as torchvision's ImageFolder finds them."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DataError

#: What names of images end in, in small letters or large: torchvision's IMG_EXTENSIONS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


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
