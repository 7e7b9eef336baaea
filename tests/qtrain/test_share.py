"""What is said to follow the recipe: of products in Functions, parts that are left, and none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qtrain import cost, quantize, summary
from qtrain.products.module import products_of


class Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad @ w, grad.mT @ x


class MyLin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Multiplied.apply(x, self.weight)
        return found


class Net(nn.Module):
    """Two of its own linear layers in a Function, checkpointed where asked."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.fc, self.lin, self.reentrant = nn.Linear(8, 8), MyLin(), reentrant

    def within(self, x: Tensor) -> Tensor:
        return self.lin(x) + F.linear(x, self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.reentrant is None:
            return self.within(x)
        found: Tensor = checkpoint(self.within, x, use_reentrant=self.reentrant)
        return found


SAID = (
    "lin: mm ran in full precision inside of a torch.autograd.Function; qtrain.register(MyLin) "
    "says how torch's functions compute the same"
)
X = torch.randn(4, 8)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_products_in_a_function_are_outside(reentrant: bool | None) -> None:
    model = quantize(Net(reentrant))
    with pytest.warns(UserWarning) as caught:
        model(X).sum().backward()
    assert any(SAID in str(one.message) for one in caught)
    assert [p.name for p in products_of(model)] == ["fc", "functional.linear0"]
    shown = summary(model, X)
    assert shown.outside == {"lin": ["mm"]} and shown.constant == {}
    assert SAID in str(shown) and shown.share is not None
    assert shown.share.left == {"lin": 4 * 8 * 8} and shown.share.value == 2 / 3


@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_they_stay_so_in_evaluation(first: Callable[[], AbstractContextManager[Any]]) -> None:
    model = quantize(nn.Sequential(MyLin(), nn.Linear(8, 8))).eval()
    with warnings.catch_warnings(), first():
        warnings.simplefilter("ignore")
        model(X)
    model(X).sum().backward()
    with torch.no_grad():
        model(X)
    assert [p.name for p in products_of(model)] == ["1"]


def test_cost_counts_them() -> None:
    """Of the first layer, whose input has no gradient, two products; of the one in a Function three
    and no row."""
    report = cost(quantize(nn.Sequential(nn.Linear(8, 8), MyLin())), X)
    assert report.share == 2 / 5 and {row.layer for row in report.rows} == {"0"}
    assert "in no row: 1: mm" in str(report)
    with torch.no_grad():
        assert cost(quantize(nn.Sequential(nn.Linear(8, 8), MyLin())), X).share == 1 / 2


def test_parts_that_are_off_are_left() -> None:
    shown = summary(quantize(nn.Sequential(nn.LSTM(8, 8)), overrides={"0.hh_l0": None}), X[None])
    assert shown.share is not None and shown.share.value == 1 / 2
    assert "not: QLSTM 50 %" in str(shown)


def test_no_products_are_said_to_be_none() -> None:
    class Own(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.weight, self.fc = nn.Parameter(torch.randn(rows, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            if len(self.weight) > 25:
                return torch.cdist(x, self.weight)
            return (x[..., None, :] * self.weight).sum(-1)

    assert "share      no multiply-adds seen" in str(summary(quantize(Own(4)), X))
    shown = summary(quantize(Own(30)), X)
    assert shown.outside == {"(model)": ["_euclidean_dist"]} and "not: Own 100 %" in str(shown)
    assert shown.share is not None and shown.share.left == {"(model)": 4 * 30 * 8}


class Experts(nn.Module):
    """Looks at values, and has a product of constants before one of activations."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("frequencies", torch.rand(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        angles = self.frequencies @ torch.arange(8.0)[None]
        x = self.fc(x)
        return x @ x.mT + angles.sum() if (x > -100).any() else x


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_constants_are_found_in_a_forward_that_looks_at_values(
    how: Callable[[], AbstractContextManager[Any]],
) -> None:
    model, calls = quantize(Experts()).eval(), []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    with how():
        model(X)
    assert [p.name for p in products_of(model)] == ["fc", "functional.matmul0"]
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(4, 8), (2, 4, 8), (2, 3, 4, 8)])
def test_a_weight_on_the_left_is_used(shape: tuple[int, ...]) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc.weight @ x.transpose(-1, -2)

    model, x = quantize(Left()), torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    shown = summary(model, x)
    assert shown.used_by == {"fc": "functional.linear0"} and not shown.never_ran
