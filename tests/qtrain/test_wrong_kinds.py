"""Arguments of the wrong kind: one TypeError or ValueError that names what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qtrain import (
    calibrate,
    inspect,
    plain_state_dict,
    quantize,
    quantize_,
    recipes,
    reseed,
    summary,
)

CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "quantize": (lambda x: quantize(x), "model: got"),
    "quantize_": (lambda x: quantize_(x), "model: got"),
    "inspect": (lambda x: inspect(x, torch.ones(1)), "model: got"),
    "summary": (lambda x: summary(x), "model: got"),
    "calibrate": (lambda x: calibrate(x, []), "model: got"),
    "reseed": (lambda x: reseed(x, 0), "model: got"),
    "plain_state_dict": (lambda x: plain_state_dict(x), "model: got"),
    "overrides": (lambda x: quantize(nn.Linear(2, 2), overrides=x or "0"), "overrides: got"),
    "recipe": (lambda x: quantize(nn.Linear(2, 2), recipe=x), "recipe: got"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [None, 3, ["0"]], ids=repr)
def test_the_wrong_kind_is_named(name: str, value: Any) -> None:
    call, text = CALLS[name]
    with pytest.raises(TypeError, match=text):
        call(value)


@pytest.mark.parametrize("value", [None, [1.0]], ids=repr)
def test_a_layer_says_what_it_was_given(value: Any) -> None:
    model = quantize(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(TypeError, match=r"layer '0.0': input is"):
        model[0][0].product(None, value, model[0][0].weight)


def test_an_unknown_recipe_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        recipes.get(["int8"])  # type: ignore[arg-type]


def test_a_model_that_cannot_be_copied_says_what_to_do() -> None:
    with pytest.warns(FutureWarning):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 2)))
    model(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"use quantize_\(model\)"):
        quantize(model)
