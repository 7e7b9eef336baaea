"""torch's default dtype is the caller's: no recipe's and no norm's bits depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import NormRecipe, quantize, recipes
from qtrain.norms import deviations
from qtrain.norms.arithmetic import Arithmetic
from quantizers import Quantizer, fp16, int8, kernels, stochastic

DTYPES = [torch.float64, torch.bfloat16, torch.float16]
NORMS: list[Any] = [
    *deviations.names(),
    NormRecipe(deviation=deviations.range_(16, "code")),
    NormRecipe(deviation=deviations.topk(3, "code"), statistics_gradient="l2"),
    NormRecipe(deviation=deviations.l1(), arithmetic=Arithmetic(format=fp16)),
    NormRecipe(
        deviation=deviations.range_(),
        arithmetic=Arithmetic(format=fp16, accumulator=fp16, sums="halved"),
    ),
    NormRecipe(
        deviation=deviations.range_(), input=Quantizer(format=int8), weight=Quantizer(format=int8),
        grad_output=Quantizer(format=int8, rounding=stochastic()),
    ),
]  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


def results(model: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """Of two steps of training and an evaluation: outputs, gradients, and all that is kept."""
    found = []
    for step in range(2):
        own = (x * (step + 1)).requires_grad_()
        output = model(own)
        output.backward(g)
        found += [output.detach(), own.grad]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    found.append(model.eval()(x).detach())
    return [*found, *model.state_dict().values()]  # type: ignore[list-item]


def check(number: int, **options: Any) -> None:
    """With kernels and without, one dtype of three in turn both ways, the others one way each."""
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(5, 4, 6, 6, generator=generator), torch.randn(5, 5, generator=generator)
    dtypes = [DTYPES[(number + i) % len(DTYPES)] for i in range(len(DTYPES))]
    for served, under in ((nullcontext, dtypes[:2]), (kernels.eager, [dtypes[0], dtypes[2]])):
        with served():
            expected = results(quantize(network(), **options), x, g)
            for dtype in under:
                model = quantize(network(), **options)
                with default_dtype(dtype):
                    got = results(model, x, g)
                for i, (one, other) in enumerate(zip(got, expected, strict=True)):
                    assert one.dtype == other.dtype and torch.equal(one, other), (dtype, i)


@pytest.mark.parametrize("name", recipes.names())
def test_no_recipe_depends_on_the_default_dtype(name: str) -> None:
    check(recipes.names().index(name), recipe=name)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_no_norm_depends_on_the_default_dtype(norm: Any) -> None:
    check(NORMS.index(norm), recipe="int8", norm=norm)
