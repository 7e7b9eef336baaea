"""The MX and HBFP recipes: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from published import RECORDED
from quantizer_checks import same_bits
from recipe_cases import (
    CASES,
    Slots,
    around,
    ceil_log2,
    check,
    floor_log2,
    grid,
    operands,
    power,
    three,
    trained,
)
from recorded_results import Recorded, recorded
from torch import nn

from qtrain import GradInput, GradWeight, Recipe, Schedule, quantize, recipes, set_recipe
from quantizers import Scale, blocks, e4m3, e5m2, e8m0, nearest_even

MXFP8 = power("e4m3", 32, lambda a: ceil_log2(a, 448.0))
OCP8 = power("e4m3", 32, lambda a: floor_log2(a) - 8)
E3M2 = power("e3m2", 32, lambda a: floor_log2(a) - 4)
INT8 = power("int8", 32, lambda a: floor_log2(a) - 6)
TSENG = power("e2m1", 32, lambda a: floor_log2(a) - 2, 0.75).stochastic
E2M1 = power("e2m1", 32, lambda a: ceil_log2(a, 6.0))
E3M0 = power("e3m0", 32, lambda a: ceil_log2(a, 16.0)).stochastic
HBFP4 = power("int4", 64, lambda a: ceil_log2(a, 1.0) - 3).stochastic
HBFP6 = power("int6", 64, lambda a: ceil_log2(a, 1.0) - 5).stochastic

RULES: dict[str, tuple[Recipe, Slots]] = {
    "mxfp8": (recipes.mxfp8(), three(MXFP8, MXFP8, MXFP8, weight=MXFP8, input=MXFP8)),
    "mxfp8, ocp": (
        recipes.mxfp8(variant="ocp"), three(OCP8, OCP8, OCP8, weight=OCP8, input=OCP8)
    ),
    "mxfp6": (recipes.mxfp6(), three(E3M2, E3M2, E3M2, weight=E3M2, input=E3M2)),
    "mxint8": (recipes.mxint8(), three(INT8, INT8, INT8, weight=INT8, input=INT8)),
    "mxfp4": (recipes.mxfp4(), three(None, None, TSENG, weight=TSENG, input=TSENG)),
    "mxfp4-e3m0": (recipes.mxfp4_e3m0(), three(E2M1, E2M1, E3M0, weight=E2M1, input=E2M1)),
    "tetrajet": (
        recipes.tetrajet(),
        three(E2M1, E2M1, E2M1.stochastic, weight=E2M1.stochastic, input=E2M1.stochastic),
    ),
    "hbfp4": (recipes.hbfp4(), three(HBFP4, HBFP4, HBFP4, weight=HBFP4, input=HBFP4)),
    "hbfp6": (recipes.hbfp6(), three(HBFP6, HBFP6, HBFP6, weight=HBFP6, input=HBFP6)),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "data"), CASES)
@pytest.mark.parametrize("name", RULES)
def test_operands_are_what_the_rule_says(name: str, layer: str, data: str) -> None:
    check(*RULES[name], layer, data)


def gradient(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with another gradient in grad_weight."""
    own: Any = recipe.grad_weight.grad_output
    return replace(
        recipe, grad_weight=replace(recipe.grad_weight, grad_output=replace(own, **changes))
    )


PLANTED = {
    "mxfp8": lambda r: gradient(r, format=e5m2),
    "mxfp8, ocp": lambda r: gradient(r, scale=Scale(e8m0, rule="rceil")),
    "mxfp6": lambda r: gradient(r, granularity=blocks(16)),
    "mxint8": lambda r: gradient(r, scale=Scale(e8m0, rule="ocp_ceil")),
    "mxfp4": lambda r: gradient(r, rounding=nearest_even),
    "mxfp4-e3m0": lambda r: replace(r, grad_input=GradInput(grad_output=r.forward.input)),
    "tetrajet": lambda r: gradient(r, granularity=blocks(16)),
    "hbfp4": lambda r: gradient(r, scale=Scale(e8m0, rule="ocp_ceil")),
    "hbfp6": lambda r: replace(r, grad_weight=GradWeight()),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_seen(name: str) -> None:
    recipe, slots = RULES[name]
    with pytest.raises(AssertionError):
        check(PLANTED[name](recipe), slots, "2-D", "gaussian")


def check_twice(recipe: Recipe, layer: str) -> None:
    """Both backward products quantize the forward's values, in their own blocks."""
    found = {slot: (x, q) for slot, x, q in operands(recipe, layer, "gaussian")}
    for product, name in (("grad_input", "weight"), ("grad_weight", "input")):
        value = found["forward", name][1].dequantize()
        assert torch.equal(found[product, name][0], value.mT)


def test_tetrajet_quantizes_the_forwards_values() -> None:
    recipe: Any = recipes.tetrajet()
    for layer in ("2-D", "3-D"):
        check_twice(recipe, layer)
        own = replace(recipe.grad_weight, source="input")
        with pytest.raises(AssertionError):
            check_twice(replace(recipe, grad_weight=own), layer)


@pytest.mark.parametrize("case", RECORDED["tetrajet"], ids=str)
def test_operands_are_tetrajets(case: Recorded) -> None:
    """Its first quantization, the scales of the second one, and its draws between our neighbours;
    recorded/README.md says what the exponents of fp32's log2 do to the other two inputs."""
    recipe: Any = recipes.tetrajet()
    first = recipe.forward.input(case.x).dequantize()
    assert torch.equal(first, case["first"])
    drawn = replace(recipe.grad_weight.input, rounding=nearest_even)
    q, where = drawn(first.T), case.spread() > 2.0**-127
    scale = q.spread(q.scale).expand(first.T.shape).T
    assert same_bits(scale[where], case.spread()[where])
    exact = (first / case.spread())[where].abs().double().numpy()
    low, high, nearest = around(exact, grid("e2m1"))
    theirs = case["elements"][where].abs().numpy()
    assert ((theirs == low) | (theirs == high)).all()
    assert np.array_equal(q.elements.T[where].abs().numpy(), nearest)


TORCHAO = [
    (case, name)
    for name in ("mxfp8", "mxfp8, ocp", "mxfp6", "mxfp4-e3m0")
    for case in RECORDED[name]
]


@pytest.mark.parametrize(("case", "name"), TORCHAO, ids=str)
def test_operands_are_torchaos(case: Recorded, name: str) -> None:
    recipe: Any = RULES[name][0]
    for operand in (recipe.forward.input, recipe.forward.weight):
        q, where = operand(case.operand), case.largest() > 0
        assert same_bits(q.spread(q.scale).expand(where.shape)[where], case.spread()[where])
        assert same_bits(q.elements[where], case["elements"][where])


@pytest.mark.parametrize("case", RECORDED["mxint8"], ids=str)
def test_mxint8_is_microxcalings(case: Recorded) -> None:
    operand: Any = recipes.mxint8().forward.input
    made = operand(case.x).dequantize()
    assert bool(((made == case["values"]) | case.spread("off_the_rule")).all())


@pytest.mark.parametrize("case", recorded("nanogpt_mxfp4", exp_bits=2), ids=str)
def test_the_forward_of_mxfp4_e3m0_is_nanogpts(case: Recorded) -> None:
    if case.data in ("tiny", "huge", "edges"):
        pytest.skip("its exponents come from fp32's log2, and leave e8m0's")
    operand: Any = recipes.mxfp4_e3m0().forward.input
    assert bool((operand(case.x).dequantize() == case["values"]).all())


def test_the_gradients_of_mxfp4_are_quartets_to_nearest() -> None:
    operand: Any = replace(recipes.mxfp4().grad_input.grad_output, rounding=nearest_even)  # type: ignore
    for case in RECORDED["mxfp4"]:
        made = operand(case.operand.view(-1, 32))
        assert bool((made.dequantize() == case["values"].view(-1, 32)).all())


@pytest.mark.parametrize(
    "name", ["mxfp8", "mxfp6", "mxint8", "mxfp4", "mxfp4-e3m0", "tetrajet", "hbfp4", "hbfp6"]
)
def test_digits_are_learned(name: str) -> None:
    distance = {"mxfp4-e3m0": 0.05, "hbfp4": 0.08}.get(name, 0.03)
    assert abs(trained(name) - trained("fp32")) < distance


def test_accuracy_booster_is_hbfp_by_a_schedule_and_overrides() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    schedule = Schedule({0.0: "hbfp4", 0.9: "hbfp6"})
    model = quantize(net, recipe=schedule, overrides={"0": "hbfp6", "2": "hbfp6"})
    names = [[one.product.recipe.name for one in model]]  # type: ignore[union-attr]
    set_recipe(model, schedule.at(9, 10))
    names.append([one.product.recipe.name for one in model])  # type: ignore[union-attr]
    assert names == [["hbfp6", "hbfp4", "hbfp6"], ["hbfp6"] * 3]
    model(torch.ones(2, 8)).sum().backward()
    with pytest.raises(ValueError, match="'accuracy-booster'; that is 'hbfp4', and 'hbfp6' in the"):
        recipes.get("accuracy-booster")


def test_the_variant_is_one_of_two() -> None:
    assert recipes.mxfp8() == recipes.get("mxfp8") != recipes.mxfp8(variant="ocp")
    assert recipes.mxfp8().forward.input.format == e4m3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="variant: got 'floor'"):
        recipes.mxfp8(variant="floor")  # type: ignore[arg-type]
