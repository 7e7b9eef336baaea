"""Overrides of calls of functions: what they decide is listed, what matches none is named."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import quantize, quantize_, recipes, set_recipe, summary

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
        "*.functional.linear_up_*": 6,
        "1.functional.attention0.scores": None,
    }
    four, six, off = (str(r) for r in (recipes.int8(4), recipes.int8(6), recipes.fp32()))
    listed = {
        "1.functional.attention0.scores": off, "1.functional.linear0": four,
        "1.functional.linear_up_0": six, "1.functional.linear_up_1": six,
    }  # fmt: skip
    model = quantize(net(), overrides=overrides)
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


CALLS = (
    r"calls of '1' are functional.attention0 \(.scores, .context\), functional.linear0, "
    r"functional.linear_up_0, functional.linear_up_1"
)
ALL = "1.functional.attention0 (.scores, .context), 1.functional.linear0"


@pytest.mark.parametrize("value", [None, 4])
@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("1.functional.attention7", rf"{CALLS}; did you mean '1.functional.attention0'\?"),
        ("1.functional.matmul0", CALLS),
        ("1.functional.linear_down_*", CALLS),
        ("1.functional.attention0.scors", rf"{CALLS}; did you mean .*attention0.scores'\?"),
        ("1.functional.linear0.product", CALLS),
        ("*.functional.linear1", r"calls of '\*' are " + re.escape(ALL)),
    ],
)
def test_one_that_no_call_matches_is_named(pattern: str, said: str, value: int | None) -> None:
    said = rf"overrides: \['{re.escape(pattern)}'\] match no call; {said}"
    overrides = {"1.functional.attention0.scores": 4, pattern: value}
    overrides |= {"1.functional.linear0": None, "*.functional.linear_up_*": 6}
    model = quantize(net(), overrides=overrides)
    with pytest.warns(UserWarning, match=said) as caught:
        model(X)
    assert len(caught) == 1
    plain = net()
    kept = {name: type(module) for name, module in plain.named_modules()}
    with pytest.raises(ValueError, match=said):
        quantize_(plain, overrides=overrides, example_inputs=X)
    assert kept == {name: type(module) for name, module in plain.named_modules()}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("1.functional.atention0", r"kinds linear, .*; did you mean '1.functional.attention0'\?"),
        ("1.functional.linear", r"kinds linear, .*; did you mean '1.functional.linear0'\?"),
        ("1.functional.matmull*", r"calls are functional.<kind><number>, of the kinds linear"),
        ("*.functional.atention*.scores", r"calls are functional.<kind><number>, of the kinds"),
        ("7.functional.linear0", r"may call functions are 1; did you mean '1.functional.linear0'"),
        ("functional.linear0", r"modules that may call functions are 1; did you mean '1.func"),
    ],
)
def test_one_that_no_call_can_match_is_refused_at_once(pattern: str, said: str) -> None:
    said = rf"overrides: \['{re.escape(pattern)}'\] match no call; .*{said}"
    with pytest.raises(ValueError, match=said):
        quantize(net(), overrides={pattern: None})
    with pytest.raises(ValueError, match=said):
        set_recipe(quantize(net()), "int8", overrides={pattern: 4})


def test_a_layer_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"\['project1'\] match no layer; .*did you mean 'project'"
    ):
        quantize(nn.ModuleDict({"project": nn.Linear(2, 2)}), overrides={"project1": 4})


def test_a_change_of_recipe_refuses_one_that_no_call_matches() -> None:
    bad = {"1.functional.attention7": 4}
    model = quantize(net(), overrides={"1.functional.linear0": None})
    set_recipe(model, "int8", overrides=bad)  # which calls there are is not known yet
    with pytest.warns(UserWarning, match=r"attention7'\] match no call; calls of '1' are"):
        model(X)
    set_recipe(model, recipes.int8(6))  # overrides that hold on were named before
    set_recipe(model, "int8", overrides={"1.functional.linear0": None})
    found = summary(model).conversion
    with pytest.raises(ValueError, match=r"attention7'\] match no call; calls of '1' are"):
        set_recipe(model, "int8", overrides=bad)
    assert summary(model).conversion is found
    model(X)
    set_recipe(model, "int8", overrides={"1.functional.linear0": 4})  # that was left before
    sooner = quantize(net(), overrides={"1.functional.linear0": None}, example_inputs=X)
    with pytest.raises(ValueError, match=r"attention7'\] match no call"):
        set_recipe(sooner, "int8", overrides=bad)
    set_recipe(sooner, "int8", overrides={"1.functional.linear0": 4})
    for recipe, overrides in (("fp32", bad), ("int8", {"1": None, **bad})):
        seen = quantize(
            net(), recipe=recipe, overrides={**overrides, "1.functional.attention7": None}
        )
        seen(X)  # of a part that is left no call is seen, which is no fault of the name


def test_calls_that_an_override_leaves_are_calls() -> None:
    overrides = {"1.functional": None, "*.functional.linear0": 4}
    quantize(net(), overrides=overrides)(X)  # a warning is an error here
    quantize(net(), overrides={"1.functional.attention0": None}, example_inputs=X)(X)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.linear(input, self.weight, self.bias)


def test_an_override_of_a_layer_with_its_own_forward_is_one_of_its_calls() -> None:
    four = {"1.functional.linear0": str(recipes.int8(4))}
    net = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8))
    later = quantize(net)
    set_recipe(later, "int8", overrides={"1": 4})
    for model in (quantize(net, overrides={"1": 4}), later):
        model(X)
        assert summary(model).conversion.overridden == four
    set_recipe(later, "int8", overrides={})
    assert summary(later).conversion.overridden == {}
    left = r"overrides\['1'\] cannot be honoured: 1: .*its own forward"
    with pytest.raises(ValueError, match=left):
        quantize(net, overrides={"1": 4}, functional=False)
    with pytest.raises(ValueError, match=left):
        set_recipe(quantize(net, functional=False), "int8", overrides={"1": 4})
