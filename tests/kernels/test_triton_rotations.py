"""Triton's Hadamard transform has the bits of torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from qtrain.recipe.gpu.rotations import rotated
from qtrain.recipe.transforms import _by_halves

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def wide(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(4).exp()


def odd() -> Tensor:
    x = wide(3, 64)
    x[0, 3], x[1, 40], x[2, :8], x[2, 20] = float("nan"), float("inf"), -0.0, 1e-42
    return x


INPUTS = {
    "matrices": wide(2, 5, 70),
    "turned": wide(2, 48, 37).mT,
    "a vector": wide(40),
    "bf16": wide(3, 40).bfloat16(),
    "every other": wide(4, 96)[:, ::2],
    "batches": wide(2, 3, 4, 33),
    "not finite": odd(),
}


@pytest.mark.parametrize("size", [2, 16, 32, 256])
@pytest.mark.parametrize("name", INPUTS)
def test_bits(name: str, size: int) -> None:
    x = INPUTS[name]
    draw = torch.Generator().manual_seed(size)
    signs = 1 - 2 * torch.randint(2, (size,), generator=draw).float()
    for own in (signs, None):
        got = rotated(x.to(DEVICE), None if own is None else own.to(DEVICE), size)
        assert got is not None and same(got, _by_halves(x, own, size))


def test_what_no_kernel_serves_is_declined() -> None:
    x = wide(4, 32).to(DEVICE)
    for other in (x.double(), x[:0], x.clone().requires_grad_()):
        assert rotated(other, None, 16) is None
    assert rotated(x, None, 512) is None
