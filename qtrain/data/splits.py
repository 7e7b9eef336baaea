"""What a split is, and the two kinds of image splits: held in memory, and decoded on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decode import SMALL, evaluation_fraction, image_size, read
from .errors import DataError
from .transforms import Augmentation, Box, Normalisation, central_box, random_boxes


class Split(Protocol):
    """Samples with targets.  `workers`: processes that decode its batches."""

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from, by the names that `models.get` takes."""
        ...

    @property
    def workers(self) -> int: ...

    @property
    def truth(self) -> Tensor:
        """What models are to say of all samples, in order: tells one split from another."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Split:
        """The same split with what is held in memory on a device."""
        ...

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) -> inputs (N, ...), targets (N,) or (N, T) int64."""
        ...


def check_labels(labels: Tensor, count: int, num_classes: int, source: str) -> None:
    """DataError unless there is one label in [0, num_classes) for each of `count` > 0 images."""
    if count == 0:
        raise DataError(f"{source}: holds no images")
    if labels.dtype != torch.int64 or labels.shape != (count,):
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise DataError(f"{source}: {count} images, but labels are {got}; need ({count},) int64")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(f"{source}: label {wrong} is out of range, need 0..{num_classes - 1}")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorSplit:
    """Images (N, C, H, W) uint8 in memory, augmented and normalised a batch at a time."""

    images: Tensor
    labels: Tensor
    num_classes: int
    normalisation: Normalisation
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    source: str = "images"
    workers: ClassVar[int] = 0  # gathering from memory needs no process

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise DataError(f"{self.source}: images are {got}, need (N, C, H, W) uint8")
        check_labels(self.labels, len(self.images), self.num_classes, self.source)

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: num_classes, in_channels and image_size."""
        _, channels, size, _ = self.images.shape
        return {"num_classes": self.num_classes, "in_channels": channels, "image_size": size}

    @property
    def truth(self) -> Tensor:
        """The labels."""
        return self.labels

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> TensorSplit:
        """The same split on a device; its batches are then made there."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) -> images (N, C, H, W) float32, labels (N,) int64."""
        chosen = torch.from_numpy(indices).to(self.images.device)
        images = self.images[chosen]
        if augment:
            images = self.augmentation(images, indices, seed=seed, epoch=epoch)
        return self.normalisation(images), self.labels[chosen]


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit:
    """Image files, decoded batch by batch to (3, size, size).

    Above 64 pixels training takes a random resized crop and a flip, evaluation the resized centre;
    up to 64 pixels the image as a whole is resized where it must be, then `augmentation` applies.
    """

    paths: Sequence[Path]
    labels: Tensor
    num_classes: int
    size: int
    normalisation: Normalisation
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    workers: int = 0
    source: str = "images"

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.paths), self.num_classes, self.source)

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: num_classes, in_channels and image_size."""
        return {"num_classes": self.num_classes, "in_channels": 3, "image_size": self.size}

    @property
    def truth(self) -> Tensor:
        """The labels."""
        return self.labels

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> FileSplit:
        """Itself: files are decoded in host memory; move the batches."""
        return self

    def decode(self, index: int, box: Box | None = None) -> NDArray[np.uint8]:
        """Image `index`, or the part `box` of it: (size, size, 3)."""
        fraction = evaluation_fraction(self.size)
        return read(self.paths[index], self.size, lambda w, h: box or central_box(w, h, fraction))

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) -> images (N, 3, size, size) float32, labels (N,) int64."""
        boxes: list[Box | None] = [None] * len(indices)
        if augment and self.size > SMALL:
            sizes = [image_size(self.paths[i]) for i in indices]
            boxes = list(random_boxes(sizes, indices, seed=seed, epoch=epoch))
        pixels = np.stack([self.decode(int(i), b) for i, b in zip(indices, boxes, strict=True)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        if augment:
            images = self.augmentation(images, indices, seed=seed, epoch=epoch)
        return self.normalisation(images), self.labels[torch.from_numpy(indices)]
