"""What `experiments.gpu` times runs, and is right, on small shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from triton_device import DEVICE, served

from experiments.gpu import accumulators, blocks, gradients, kernels, linear, norms

pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subject runs once."""

    def ran(runs: Mapping[str, Any], rounds: int, least: float) -> dict[str, float]:
        return {name: 0.0 * (run() is None) for name, run in runs.items()}

    for module in (gradients, linear, norms):
        monkeypatch.setattr(module, "captured", lambda run: run)
        monkeypatch.setattr(module, "milliseconds", ran)


def test_convolutions() -> None:
    subjects, sums, exact = kernels.convolved((1, 16, 5, 8, 3, 2), DEVICE)
    assert torch.equal(sums.double(), exact)
    shapes = {name: tuple(run().shape) for name, run in subjects.items()}
    assert shapes.pop("TF32") == shapes.pop("bf16") == exact.shape
    assert set(shapes.values()) == {(1, 1, 8, 3, 3)}


def test_gradients() -> None:
    assert gradients.timed((1, 16, 4, 8, 3, 1), 1, DEVICE)["error"] < 1e-6


def test_norms() -> None:
    assert norms.timed((2, 4, 4), 1, DEVICE)["error"] < 1e-5


def test_sums_in_blocks() -> None:
    assert blocks.timed((20, 16, 64), 1, DEVICE)["error"] == 0


def test_accumulators() -> None:
    assert accumulators.timed((5, 8, 6), 1, DEVICE)["error"] == 0
