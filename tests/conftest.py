"""One thread for each of pytest's parallel workers: the tests' tensors are small."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """A folder of noise: 3 classes, 2 training images and a test image of so many pixels each."""
    draw = np.random.default_rng(0)

    def of(size: int) -> str:
        root = tmp_path_factory.mktemp(f"images{size}")
        for part, count in (("train", 2), ("val", 1)):
            for name in "abc":
                place = root / part / name
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = draw.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{i}.png")
        return str(root)

    return of
