"""The FP8 recipes: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from published import RECORDED
from quantizer_checks import same_bits
from recipe_cases import (
    CASES,
    Place,
    Slots,
    by_reciprocal,
    check,
    divided,
    numbers,
    operands,
    steps,
    three,
    trained,
)
from recorded_results import Recorded

from qtrain import Forward, GradWeight, Recipe, quantize, recipes
from quantizers import FloatFormat, Scale, absmax, bf16, blocks, e4m3, history

E4M3, E5M2 = by_reciprocal("e4m3"), by_reciprocal("e5m2")
ROWS, TILES = divided("e4m3", (1, 128)), divided("e4m3", (128, 128))
COAT = (
    ("e4m3", None, ml_dtypes.bfloat16), ("e4m3", None), ("e5m2", None, ml_dtypes.bfloat16)
)  # fmt: skip
RULES: dict[str, tuple[Recipe, Slots]] = {
    "fp8": (recipes.fp8(), three(E4M3, E4M3, E5M2)),
    "deepseek-v3": (recipes.deepseek_v3(), three(ROWS, TILES, ROWS, input=ROWS)),
    "coat": (recipes.coat(), three(*(divided(*one) for one in COAT))),
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
    if name == "coat":  # a scale of the weights in bf16 as well
        return replace(recipe, forward=Forward(input=recipe.forward.input))
    powers = replace(recipe.forward.weight, granularity=blocks(128))
    return replace(recipe, forward=replace(recipe.forward, weight=powers))


@pytest.mark.parametrize("name", RULES)
def test_a_planted_error_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        check(planted(name), RULES[name][1], "2-D", "gaussian")


def test_coat_hands_on_groups_of_16_features() -> None:
    """By hand: e4m3 under fl(amax / 448) in bf16."""
    recipe: Any = recipes.coat()
    layer = torch.nn.Linear(40, 70)
    model, x = quantize(layer, recipe=recipe), numbers("heavy-tailed", 5, 3, 40, seed=0)
    exact = quantize(layer, recipe=replace(recipe, activation=None))(x).detach().numpy()
    values = np.empty_like(exact)
    for left in range(0, 70, 16):
        group = exact[..., left : left + 16]
        scale = np.abs(group).max(-1, keepdims=True) / np.float32(448)
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        values[..., left : left + 16] = (group / scale).astype(ml_dtypes.float8_e4m3fn) * scale
    assert np.array_equal(model(x).detach().numpy(), values)
    assert recipe.activation.scale == Scale(bf16) and "adam-coat" in recipe.leaves_out


@pytest.mark.parametrize("case", RECORDED["fp8"], ids=str)
def test_fp8_is_transformer_engines(case: Recorded) -> None:
    recipe: Any = recipes.fp8()
    own = (
        recipe.forward.input if case.settings["format"] == "e4m3" else recipe.grad_input.grad_output
    )
    q, where = own(case.operand), case.largest() > 0
    assert same_bits(q.spread(q.scale).expand(where.shape)[where], case.spread()[where])
    assert torch.equal(q.elements[where], case["elements"][where])


@pytest.mark.parametrize("case", RECORDED["deepseek-v3"], ids=str)
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


def check_delayed(recipe: Recipe, layer: str, data: str) -> None:
    """Four steps, the second's operands the largest: they saturate, and the later ones know."""
    before: dict[Place, list[Any]] = defaultdict(list)
    for place, x, q in steps(recipe, layer, data, (1, 9, 1, 1)):
        maxima = before[place]
        maxima.append(x.abs().max().numpy())
        bound = max(maxima[:-1], default=maxima[0])
        forward = place[1] == "forward"
        kind = ml_dtypes.float8_e4m3fn if forward else ml_dtypes.float8_e5m2
        most = np.float32(ml_dtypes.finfo(kind).max)
        with np.errstate(over="ignore"):
            factor = np.minimum(most / bound, np.finfo(np.float32).max)
        assert q.scale is not None and q.scale.item() == np.float32(1) / factor
        exact = np.clip(x.numpy() * factor, -most, most).astype(kind)
        assert np.array_equal(q.elements.numpy(), exact.astype(np.float32)), place
        if len(maxima) == 2 and place[2] != "weight" and data != "tiny":
            assert q.elements.abs().max() == most
    assert {len(maxima) for maxima in before.values()} == {4}


DELAYED = [("2-D", "gaussian"), ("3-D", "heavy-tailed"), ("convolution", "tied"),
           ("attention", "bf16"), ("2-D", "tiny")]  # fmt: skip


@pytest.mark.parametrize(("layer", "data"), DELAYED)
def test_delayed_scales_are_those_of_the_maxima_before(layer: str, data: str) -> None:
    check_delayed(recipes.fp8_delayed(), layer, data)


@pytest.mark.parametrize(
    "range", [absmax, history(1024, "last", absmax), history(1, "max", absmax)]
)
def test_a_planted_past_is_seen(range: Any) -> None:
    recipe: Any = recipes.fp8_delayed()
    wrong = replace(recipe.grad_weight.grad_output, range=range)
    with pytest.raises(AssertionError):
        check_delayed(replace(recipe, grad_weight=GradWeight(grad_output=wrong)), "2-D", "gaussian")


def test_the_history_is_of_1024_maxima() -> None:
    slots = recipes.fp8_delayed().slots.values()
    assert {slot.quantizer.range for slot in slots} == {history(1024, "max", absmax)}  # type: ignore


def check_hfp8(recipe: Recipe, layer: str, data: str) -> None:
    """1-4-3 with bias 11 saturates at 30; 1-5-2 becomes infinite."""
    for slot, x, q in operands(recipe, layer, data):
        kind = ml_dtypes.float8_e5m2
        if slot[0] == "forward":
            kind, x = ml_dtypes.float8_e4m3b11fnuz, x.clamp(-30, 30)
        assert q.scale is None
        with np.errstate(over="ignore"):
            exact = x.numpy().astype(kind).astype(np.float32)
        assert np.array_equal(q.elements.float().numpy(), exact), slot


@pytest.mark.parametrize(("layer", "data"), CASES)
def test_hfp8_rounds_to_its_two_formats(layer: str, data: str) -> None:
    check_hfp8(recipes.hfp8(), layer, data)
    assert len({slot for slot, _, _ in operands(recipes.hfp8(), layer, data)}) == 4


@pytest.mark.parametrize("bias", [7, 10])
def test_another_bias_of_hfp8_is_seen(bias: int) -> None:
    recipe: Any = recipes.hfp8()
    own = replace(recipe.forward.input, format=FloatFormat(4, 3, bias=bias, specials="finite"))
    with pytest.raises(AssertionError):
        check_hfp8(replace(recipe, forward=replace(recipe.forward, input=own)), "2-D", "gaussian")


@pytest.mark.parametrize("name", [*RULES, "fp8-delayed", "hfp8"])
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < 0.02
    assert np.isfinite(trained(name))
