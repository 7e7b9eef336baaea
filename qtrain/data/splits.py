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
from .errors import DataError, check_range
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """What both kinds of splits know of their images."""

    labels: Tensor
    num_classes: int
    normalisation: Normalisation
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    source: str = "images"

    @property
    def truth(self) -> Tensor:
        """The labels."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def _check_labels(self, count: int) -> None:
        """DataError unless there is one label in [0, num_classes) for each of `count` > 0."""
        if count == 0:
            raise DataError(f"{self.source}: holds no images")
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            got = f"{tuple(self.labels.shape)} {self.labels.dtype}"
            need = f"({count},) int64"
            raise DataError(f"{self.source}: {count} images, but labels are {got}; need {need}")
        check_range(self.labels, self.num_classes, self.source, "label")

    def _sizes(self, channels: int, size: int) -> dict[str, int]:
        return {"num_classes": self.num_classes, "in_channels": channels, "image_size": size}

    def _batch(
        self, images: Tensor, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """Raw images of the samples `indices` -> what `read` gives."""
        if augment:
            images = self.augmentation(images, indices, seed=seed, epoch=epoch)
        labels = self.labels[torch.from_numpy(indices).to(self.labels.device)]
        return self.normalisation(images), labels


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorSplit(_Images):
    """Images (N, C, H, W) uint8 in memory, augmented and normalised a batch at a time."""

    images: Tensor
    workers: ClassVar[int] = 0  # gathering from memory needs no process

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise DataError(f"{self.source}: images are {got}, need (N, C, H, W) uint8")
        self._check_labels(len(self.images))

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: num_classes, in_channels and image_size."""
        return self._sizes(self.images.shape[1], self.images.shape[2])

    def to(self, device: torch.device | str) -> TensorSplit:
        """The same split on a device; its batches are then made there."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) -> images (N, C, H, W) float32, labels (N,) int64."""
        images = self.images[torch.from_numpy(indices).to(self.images.device)]
        return self._batch(images, indices, seed=seed, epoch=epoch, augment=augment)


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit(_Images):
    """Image files, decoded batch by batch to (3, size, size).

    Above 64 pixels training takes a random resized crop and a flip, evaluation the resized centre;
    up to 64 pixels the image as a whole is resized where it must be, then `augmentation` applies.
    """

    paths: Sequence[Path]
    size: int
    workers: int = 0

    def __post_init__(self) -> None:
        self._check_labels(len(self.paths))

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: num_classes, in_channels and image_size."""
        return self._sizes(3, self.size)

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
        return self._batch(images, indices, seed=seed, epoch=epoch, augment=augment)
