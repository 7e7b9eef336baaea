"""The FP8 recipes: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recipe_cases import CASES, Slots, by_reciprocal, check, divided, operands, three, trained
from recorded_results import Recorded, recorded

from qtrain import GradWeight, Recipe, recipes
from quantizers import Scale, blocks, e4m3

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


@pytest.mark.parametrize("name", RULES)
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < 0.02
    assert np.isfinite(trained(name))
