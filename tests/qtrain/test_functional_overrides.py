"""Overrides of calls of functions: what they decide is listed, what matches none is named."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import quantize, recipes, set_recipe, summary

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Attend(nn.Module):
    """A layer of attention, a product with a weight, and one with a slice of a stacked one."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.randn(8, 8) / 3)
        self.up = nn.Parameter(torch.randn(2, 8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(F.scaled_dot_product_attention(x, x, x), self.out)
        return F.linear(x, self.up[1])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Attend())


def test_what_overrides_make_of_calls_is_listed() -> None:
    overrides = {
        "1.functional.linear0": 4,
        "*.functional.linear_up_*": "bf16",
        "1.functional.attention0.scores": None,
    }
    four, bf16, off = (str(r) for r in (recipes.int8(4), recipes.bf16(), recipes.fp32()))
    listed = {
        "1.functional.attention0.scores": off, "1.functional.linear0": four,
        "1.functional.linear_up_0": bf16, "1.functional.linear_up_1": bf16,
    }  # fmt: skip
    model = quantize(net(), overrides=overrides)
    assert summary(model, X).conversion.overridden == listed  # of the copy that ran
    assert summary(model).conversion.overridden == {}
    sooner = quantize(net(), overrides=overrides, example_inputs=X)
    model(X)
    fresh = quantize(net(), overrides=overrides)
    fresh.load_state_dict(model.state_dict())
    for one in (model, sooner, fresh, copy.deepcopy(model)):
        assert summary(one).conversion.overridden == listed
        assert f"override   1.functional.linear0: {four}\n" in str(summary(one))


def test_a_change_of_recipe_lists_those_made_before_and_after_it() -> None:
    model = quantize(net(), overrides={"1.functional.linear0": None})
    model(X)
    set_recipe(model, "int8", overrides={"1.functional.linear*0": 4})
    assert list(summary(model).conversion.overridden) == ["1.functional.linear_up_0"]
    model(X)
    made = ["1.functional.linear_up_0", "1.functional.linear0"]
    assert list(summary(model).conversion.overridden) == made
    set_recipe(model, "int8", overrides={})
    assert summary(model).conversion.overridden == {}
