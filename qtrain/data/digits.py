"""The embedded data set: 1,797 handwritten digits of 8x8 pixels with values 0..16.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998, doi 10.24432/C50P49, licensed CC BY 4.0; its test set, as distributed
with scikit-learn (`load_digits`).  Changed only in storage: uint8 in `digits.npz`.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from . import draws
from .dataset import DataSet, tensor_data_set, tensors
from .transforms import Augmentation

TEST_IMAGES = 360


def is_test(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the images (N,) are test images: 360 of 1,797, stratified, always the same."""
    counts = np.bincount(labels)
    exact = counts * TEST_IMAGES / len(labels)
    quota = np.floor(exact).astype(int)
    # Largest remainders first, so that the quotas add up.
    quota[np.argsort(quota - exact, kind="stable")[: TEST_IMAGES - quota.sum()]] += 1
    mask = np.zeros(len(labels), dtype=bool)
    order = draws.permutation(len(labels), seed=0, epoch=0)
    for label, size in enumerate(quota):
        mask[order[labels[order] == label][:size]] = True
    return mask


def load_digits() -> DataSet:
    """1,437 training and 360 test images, (1, 8, 8); no augmentation."""
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        with np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    mask = is_test(labels)
    train, test = (tensors(images[part][:, None], labels[part]) for part in (~mask, mask))
    return tensor_data_set(
        "digits", train, test, classes=[str(i) for i in range(10)], augmentation=Augmentation()
    )
