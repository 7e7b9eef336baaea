"""The FP8 recipes: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recipe_cases import (
    CASES,
    Seen,
    Slots,
    by_reciprocal,
    check,
    divided,
    numbers,
    operands,
    three,
    trained,
)
from recorded_results import Recorded, recorded
from torch import nn

from qtrain import GradWeight, Recipe, quantize, recipes
from qtrain.products.module import products_of
from quantizers import Scale, absmax, blocks, e4m3, e5m2, history

E4M3, E5M2 = by_reciprocal("e4m3"), by_reciprocal("e5m2")
ROWS, TILES = divided("e4m3", (1, 128)), divided("e4m3", (128, 128))
RULES: dict[str, tuple[Recipe, Slots]] = {
    "fp8": (recipes.fp8(), three(E4M3, E4M3, E5M2)),
    "deepseek-v3": (recipes.deepseek_v3(), three(ROWS, TILES, ROWS, input=ROWS)),
}


@pytest.mark.parametrize(("layer", "data"), CASES)
@pytest.mark.parametrize("name", RULES)
def test_operands_are_what_the_rule_says(name: str, layer: str, data: str) -> None:
    check(*RULES[name], layer, data)


def test_the_input_of_deepseeks_grad_weight_is_the_forwards_value() -> None:
    found = {slot: (x, q) for slot, x, q in operands(recipes.deepseek_v3(), "3-D", "gaussian")}
    value = found["forward", "input"][1].dequantize()
    assert torch.equal(found["grad_weight", "input"][0], value.transpose(1, 2))
    assert not torch.equal(found["grad_weight", "input"][0], found["forward", "input"][0].mT)


def planted(name: str) -> Recipe:
    recipe: Any = RULES[name][0]
    if name == "fp8":  # gradients in the forward's format
        return replace(recipe, grad_weight=GradWeight(grad_output=recipe.forward.input))
    powers = replace(recipe.forward.weight, granularity=blocks(128))
    return replace(recipe, forward=replace(recipe.forward, weight=powers))


@pytest.mark.parametrize("name", RULES)
def test_a_planted_error_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        check(planted(name), RULES[name][1], "2-D", "gaussian")


@pytest.mark.parametrize(
    "case", recorded("transformer_engine", "CurrentScaling", pow_2_scales=False), ids=str
)
def test_fp8_is_transformer_engines(case: Recorded) -> None:
    recipe: Any = recipes.fp8()
    own = (
        recipe.forward.input if case.settings["format"] == "e4m3" else recipe.grad_input.grad_output
    )
    q, where = own(case.operand), case.largest() > 0
    assert same_bits(q.spread(q.scale).expand(where.shape)[where], case.spread()[where])
    assert torch.equal(q.elements[where], case["elements"][where])


@pytest.mark.parametrize(
    "case", recorded("transformer_engine", "Blockwise", pow_2_scales=False, format="e4m3"), ids=str
)
def test_deepseeks_blocks_are_transformer_engines_by_reciprocals(case: Recorded) -> None:
    """Which multiplies by them, where DeepSeek's kernel divides."""
    recipe: Any = recipes.deepseek_v3()
    tile = case.settings["block"][0] == 128
    own = recipe.forward.weight if tile else recipe.forward.input
    q = replace(own, scale=Scale(reciprocal=True))(case.operand)
    where = case.largest() > 0
    assert same_bits(q.spread(q.scale).expand(where.shape)[where], case.spread()[where])
    assert torch.equal(q.elements[where], case["elements"][where])
    exact = own(case.operand)
    differ = (exact.elements != q.elements)[where & (case.largest() > 1e-30)]
    assert differ.double().mean() < 0.01 and own.format == e4m3


def test_delayed_scales_are_those_of_the_maxima_before() -> None:
    """Three steps, the second's input the largest: it saturates, and the third knows of it."""
    layer = nn.Sequential(nn.Linear(8, 6))
    model, probe = quantize(layer, recipe="fp8-delayed"), Seen()
    for one in products_of(model):
        one.probe = probe
    inputs = [
        numbers("gaussian", 5, 8, seed=seed) * factor for seed, factor in enumerate((1, 9, 1))
    ]
    for x in inputs:
        y = model(x.requires_grad_())
        y.backward(torch.ones_like(y))
    found = [q for slot, _, q in probe.found if slot == ("forward", "input")]
    maxima = [x.detach().abs().max().numpy() for x in inputs]
    for q, x, bound in zip(found, inputs, (maxima[0], maxima[0], max(maxima[:2])), strict=True):
        factor = np.minimum(np.float32(448) / bound, np.finfo(np.float32).max)
        assert q.scale is not None and q.scale.item() == np.float32(1) / factor
        exact = np.clip(x.detach().numpy() * factor, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(q.elements.numpy(), exact.astype(np.float32))
    assert found[1].elements.abs().max() == 448
    delayed: Any = recipes.fp8_delayed()
    assert delayed.grad_weight.grad_output.format == e5m2
    assert {q.range for q in (delayed.forward.weight, delayed.grad_input.grad_output)} == {
        history(1024, "max", absmax)
    }


@pytest.mark.parametrize("name", [*RULES, "fp8-delayed"])
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < 0.02
    assert np.isfinite(trained(name))
