"""Augmentation and normalisation of a batch of uint8 images; every draw belongs to a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from . import draws

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Shift by up to `padding` pixels (zeros come in) and, if asked, a mirror image half the time.

    The crop of a zero-padded image of He et al. 2015, section 4.2.
    """

    padding: int = 0
    flip: bool = False

    def __call__(
        self, images: Tensor, indices: NDArray[np.int64], *, seed: int, epoch: int
    ) -> Tensor:
        """images: (N, C, H, W), the samples `indices` (N,) -> same shape and dtype."""
        if self.padding == 0 and not self.flip:
            return images
        n, channels, height, width = images.shape
        shifts = 2 * self.padding + 1
        top = draws.below(shifts, indices, seed=seed, epoch=epoch, purpose=draws.SHIFT_Y)
        left = draws.below(shifts, indices, seed=seed, epoch=epoch, purpose=draws.SHIFT_X)
        rows = top[:, None] + np.arange(height)
        columns = left[:, None] + np.arange(width)
        if self.flip:
            mirror = draws.below(2, indices, seed=seed, epoch=epoch, purpose=draws.FLIP) == 1
            columns = np.where(mirror[:, None], columns[:, ::-1], columns)
        device = images.device
        padded = functional.pad(images, (self.padding,) * 4)
        sample = torch.arange(n, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        row = torch.from_numpy(rows).to(device)[:, None, :, None]
        column = torch.from_numpy(columns).to(device)[:, None, None, :]
        return padded[sample, channel, row, column]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """(pixel - mean) / std per channel; mean and std in the raw units of the uint8 images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """images: (N, C, H, W) uint8 -> float32, same shape."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(shape)
        return (images.float() - mean) / std


# The customary constants of ImageNet's training set, here in units of 0..255.
IMAGENET = Normalisation(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)


def normalisation_of(images: Tensor) -> Normalisation:
    """Mean and standard deviation per channel of images (N, C, H, W) uint8, from exact sums.

    A channel that is constant gets the deviation 1.
    """
    channels = images.shape[1]
    total = torch.zeros(channels, dtype=torch.int64, device="cpu")
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, 4096):
        wide = chunk.to(torch.int64)
        total += wide.sum((0, 2, 3)).cpu()
        squares += wide.square().sum((0, 2, 3)).cpu()
    count = images.numel() // channels
    mean, std = [], []
    for first, second in zip(total.tolist(), squares.tolist(), strict=True):
        mean.append(first / count)
        variance = (second * count - first * first) / count**2  # exact integers, one rounding
        std.append(math.sqrt(variance) if variance > 0 else 1.0)
    return Normalisation(mean=tuple(mean), std=tuple(std))


def random_boxes(
    sizes: list[tuple[int, int]], indices: NDArray[np.int64], *, seed: int, epoch: int
) -> list[Box]:
    """A (left, top, right, bottom) for each (width, height): 8 to 100 % of the area, 3:4 to 4:3.

    Szegedy et al. 2014 (arXiv 1409.4842).  Ten attempts, then the central square.
    """
    attempts = 10
    u = np.stack(
        [
            draws.uniform(indices, seed=seed, epoch=epoch, purpose=draws.CROP + i)
            for i in range(4 * attempts)
        ],
        axis=1,
    ).reshape(len(indices), attempts, 4)
    return [_random_box(w, h, draw) for (w, h), draw in zip(sizes, u.tolist(), strict=True)]


def _random_box(width: int, height: int, draws_: list[list[float]]) -> Box:
    for area, ratio, x, y in draws_:
        target = width * height * (0.08 + 0.92 * area)
        aspect = math.exp((2 * ratio - 1) * math.log(4 / 3))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = math.floor(x * (width - w + 1))
            top = math.floor(y * (height - h + 1))
            return (left, top, left + w, top + h)
    return central_box(width, height, 1.0)


def central_box(width: int, height: int, fraction: float) -> Box:
    """The central square whose side is `fraction` of the shorter side."""
    side = fraction * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)
