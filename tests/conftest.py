"""One thread for each of pytest's parallel workers: the tests' tensors are small."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import sample

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hardware-data", type=Path, help="folder of outputs recorded on real tensor cores"
    )
    parser.addoption("--every-case", action="store_true", help="all cases of all tests")


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "costly: half a minute or more; without AVX-512 by --every-case alone",
        "cases(few, share): how many of its cases run (tests/sampling.py)",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-case"):
        kept = sample(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


@pytest.fixture
def hardware_data(request: pytest.FixtureRequest) -> Path:
    """The folder of GPU_format.npz: a, b (cases, K), c, d (cases,), fp32; d = c + sum of a b."""
    found: Path | None = request.config.getoption("--hardware-data")
    if found is None:
        pytest.skip("needs --hardware-data DIR")
    return found


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
