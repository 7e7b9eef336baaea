"""How far a tensor walks through the house in one step: what is decided once is not asked again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from qtrain import Monitor, quantize
from qtrain.products.engines.onednn import OneDnnInt8
from quantizers import kernels

ROOT = str(Path(__file__).parents[2])
OURS = f"{ROOT}/qtrain/", f"{ROOT}/quantizers/"


def walk(run: Callable[[], Any]) -> tuple[int, int, Any]:
    """(calls of functions of ours, changes of file from caller to callee, what run returns)."""
    calls, changes, stack = 0, 0, [""]

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls, changes
        file = frame.f_code.co_filename
        if not file.startswith(OURS):
            return
        if event == "call":
            calls += 1
            changes += file != stack[-1]
            stack.append(file)
        elif event == "return":
            stack.pop()

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        result = run()
    finally:
        sys.setprofile(before)
    return calls, changes, result


def step(model: nn.Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """The walks of a forward and of a backward, kernels and plans warm."""
    x = torch.ones(8, 64, 28, 28).requires_grad_()
    gradient = torch.ones(8, 64, 28, 28)
    for _ in range(2):
        model(x).backward(gradient)
    *forward, output = walk(lambda: model(x))
    *backward, _ = walk(lambda: output.backward(gradient))
    return (forward[0], forward[1]), (backward[0], backward[1])


@pytest.fixture
def model() -> nn.Module:
    if not kernels.serves(torch.ones(1)):
        pytest.skip("needs the fused kernels")
    return quantize(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)))


@pytest.mark.skipif(
    not OneDnnInt8().admitted_on("cpu"), reason="this processor has no exact int8 units (VNNI)"
)
def test_a_convolution_walks_no_further_than_it_must(model: nn.Module) -> None:
    (calls, changes), (back, back_changes) = step(model)
    assert 20 < calls <= 71 and changes <= 46
    assert 40 < back <= 124 and back_changes <= 68  # of them 27 steps of generators


def test_what_is_off_adds_no_call(model: nn.Module) -> None:
    plain = step(model)
    with Monitor(model, every=100):
        pass
    assert step(model) == plain
