"""Image files to uint8 arrays, with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ..files.whole import opened
from .errors import DataError, reason
from .transforms import Box

SMALL = 64  # pixels; images up to here are kept as they are and augmented by shift and flip
#: What the names of images promise, and GIF, which some data sets have under such names.  Others,
#: such as EPS, start foreign programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Pixels of at most 8 bits a channel, or of 16 of which Pillow read 8.
_CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TEST_CROP = 224 / 256  # the customary test crop: shorter side to 256, centre 224


def read(path: Path, size: int, box: Callable[[int, int], Box]) -> NDArray[np.uint8]:
    """The part `box(width, height)` of the image, in RGB, resized (bilinear) to (size, size, 3).

    An image that already has the size and whose box is all of it comes out untouched.  DataError
    names a file that cannot be decoded.
    """
    with _opened(path) as file:
        image = _rgb(file)
        part = box(*image.size)
        if image.size != (size, size) or part != (0, 0, size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=part)
        return np.asarray(image, dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header.  DataError names a file that is no image."""
    with _opened(path) as file:
        return file.size


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image in a file; DataError for what it or the file raises while it is used."""
    try:
        with opened(path) as file, Image.open(file, formats=_FORMATS) as image:
            assert isinstance(image, ImageFile.ImageFile)
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ValueError("it holds several images, and which one is meant is not said")
            yield image
    except MemoryError:
        raise
    except Exception as error:  # damaged images fail in many ways, all before any use
        what = reason(error)
        if isinstance(error, UnidentifiedImageError):
            what = f"none of {', '.join(_FORMATS)}"
        raise DataError(f"{path}: not a readable image ({what}); replace or delete it") from None


def _rgb(image: ImageFile.ImageFile) -> Image.Image:
    """An image in 8-bit RGB.

    Up to 8 bits Pillow's conversion: grey and palettes become the colours they mean, transparency
    is dropped and not blended, inks (CMYK) are inverted; of colours with 16 bits Pillow reads the
    upper 8.  Grey of 9 to 16 bits is scaled by 255 / its largest value, rounded to the nearest:
    `convert` would clip it.  ValueError for pixels of which no range is known: integers of 32 bits,
    signed ones, floats.
    """
    if image.mode in _CONVERTED:
        return image.convert("RGB")
    largest, inverted = _grey_range(image)
    grey = np.asarray(image).astype(np.int64)  # wide enough for all of 255 * 65535
    if inverted:
        grey = largest - grey
    scaled = (2 * 255 * grey + largest) // (2 * largest)  # never half: the largest is odd
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _grey_range(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """The largest value of a grey image of more than 8 bits, and whether it stands for black."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I;16"):
        bits = image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]
        return 2**bits - 1, image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    # Pillow scales PGM files of any largest value to 16 bits, in mode I
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 2**16 - 1, False
    raise ValueError(f"pixels of kind {image.mode} have no known range; save it with 8 or 16 bits")


def evaluation_fraction(size: int) -> float:
    """What part of the shorter side the evaluation crop keeps at this output size."""
    return 1.0 if size <= SMALL else _TEST_CROP
