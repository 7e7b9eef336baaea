"""A data set: a training and a test split of the same classes and sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError
from .splits import Split, TensorSplit
from .transforms import Augmentation, normalisation_of


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Two splits; `classes` names labels 0, 1, ... (of text: its characters)."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: `models.get(name, **dataset.sizes)`.

        num_classes, and of images in_channels and image_size, of text context.
        """
        return self.train.sizes

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the classes and the truth of both splits.

        Equal for the same text, wherever it lies.  Of images it sees the labels in their order, no
        pixels: decoders of other versions give others, and what is decoded batch by batch is large.
        """
        found = hashlib.sha256(json.dumps(self.classes).encode())
        for split in (self.train, self.test):
            values = split.truth.cpu().numpy()
            found.update(f" {values.dtype} {values.shape} ".encode())
            found.update(values.tobytes())
        return found.hexdigest()

    def to(self, device: torch.device | str) -> DataSet:
        """The same set with what is held in memory on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def tensors(images: NDArray[np.uint8], labels: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Copies for `tensor_data_set`."""
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def tensor_data_set(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: Sequence[str],
    augmentation: Augmentation,
) -> DataSet:
    """A set held in memory, normalised by its training images.

    train, test: images (N, C, S, S) uint8 and labels (N,) int64.  DataError for other shapes and
    for labels out of range.
    """
    images = train[0]
    shapes = [tuple(x.shape[1:]) for x in (images, test[0])]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][1] != shapes[0][2]:
        raise DataError(
            f"{name}: training images are {shapes[0]} and test images {shapes[1]}; need the same "
            "(channels, size, size)"
        )
    if images.numel() == 0:
        raise DataError(f"{name}: the training set holds no images, or images without a pixel")
    normalisation = normalisation_of(images)
    splits = [
        TensorSplit(
            images=x,
            labels=y,
            num_classes=len(classes),
            normalisation=normalisation,
            augmentation=augmentation,
            source=f"{name} ({part})",
        )
        for part, (x, y) in (("train", train), ("test", test))
    ]
    return DataSet(name=name, train=splits[0], test=splits[1], classes=tuple(classes))
