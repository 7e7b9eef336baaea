"""Whole networks' products of functions are their modules', bit for bit, in steps of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_cases import NETWORKS
from torch import Tensor, nn

from experiments.coverage.compared import compared
from experiments.coverage.steps import nearest
from qtrain import recipes


def made(name: str) -> tuple[nn.Module, dict[str, Tensor], Any]:
    torch.manual_seed(0)
    network, inputs, norm = NETWORKS[name]
    return network(), {key: draw() for key, draw in inputs.items()}, norm


#: calls in one forward
CALLS = {
    "ViT": 2, "ViT, unfused": 4, "Llama": 2, "Swin's windows": 4, "weight-standardised ResNet": 5,
    "Mixer": 6, "LSTM": 6, "experts": 3,
}  # fmt: skip


@pytest.mark.cases(8, 1)
@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_with_noise_and_an_evaluation(name: str) -> None:
    network, inputs, norm = made(name)
    found = compared(network, inputs, recipe=recipes.int8(8), norm=norm, asking=True, count=2)
    assert found.calls == CALLS[name]
    assert not found.differ and not found.infinite


@pytest.mark.cases(8, 1)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_without_noise_beside_modules_made_anew(name: str) -> None:
    network, inputs, norm = made(name)
    found = compared(network, inputs, recipe=nearest(), norm=norm, same_noise=False)
    assert found.calls == CALLS[name]
    assert not found.differ and not found.infinite


def test_other_noise_is_seen() -> None:
    """The comparison can fail."""
    network, inputs, norm = made("Llama")
    found = compared(network, inputs, recipe=recipes.int8(8), norm=norm, same_noise=False)
    assert "0: grad of embedding.weight" in found.differ and "0: output 0" not in found.differ
