"""One thread for each of pytest's parallel workers: the tests' tensors are small."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hardware-data", type=Path, help="folder of outputs recorded on real tensor cores"
    )
    parser.addoption(
        "--every-case", action="store_true", help="all tests on a processor without AVX-512 too"
    )


#: of a test with more cases, every sixth runs on a processor without AVX-512, where all of them
#: would take three quarters of an hour; `costly` tests, half a minute or more each, not at all
MANY = 6


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "costly: without AVX-512 by --every-case alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--every-case") or torch.backends.cpu.get_cpu_capability() == "AVX512":
        return
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    many = [cases for cases in tests.values() if len(cases) > MANY]
    left_out = {item for cases in many for i, item in enumerate(cases) if i % MANY}
    left_out |= {item for item in items if item.get_closest_marker("costly")}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


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
