"""Image files to uint8 arrays, with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError
from .transforms import Box

SMALL = 64  # pixels; images up to here are kept as they are and augmented by shift and flip
_TEST_CROP = 224 / 256  # the customary test crop: shorter side to 256, centre 224


def read(path: Path, size: int, box: Callable[[int, int], Box]) -> NDArray[np.uint8]:
    """The part `box(width, height)` of the image, in RGB, resized (bilinear) to (size, size, 3).

    An image that already has the size and whose box is all of it comes out untouched.  DataError
    names a file that cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
        part = box(*image.size)
        if image.size != (size, size) or part != (0, 0, size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=part)
        return np.asarray(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or delete it") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header.  DataError names a file that is no image."""
    try:
        with Image.open(path) as file:
            return file.size
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or delete it") from None


def evaluation_fraction(size: int) -> float:
    """What part of the shorter side the evaluation crop keeps at this output size."""
    return 1.0 if size <= SMALL else _TEST_CROP
