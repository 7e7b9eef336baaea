"""The NVFP4 recipes: bits of every operand, planted errors, a training run."""

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
    Array,
    Slots,
    amax,
    around,
    by_division,
    check,
    check_operand,
    e2m1_under,
    e4m3,
    grid,
    numbers,
    operands,
    over_blocks,
    te,
    three,
    trained,
)
from recorded_results import Recorded, recorded
from torch import Tensor

from qtrain import GradWeight, Recipe, recipes
from quantizers import QTensor, Scale, blocks, ceil, floor, formats, fp32, nearest_even

NV, NV_TILE, DIVIDED = te(), te((16, 16)), by_division()
DIVIDED_BEST = by_division(most=256, other=4)
BEST, BEST_TILE = te(most=256, other=1.5), te((16, 16), most=256, other=1.5)
HEADED = te(most=256, top=6 * 16 / 17, other=1.5).stochastic
RULES: dict[str, tuple[Recipe, Slots]] = {
    "nvfp4": (recipes.nvfp4(), three(NV, NV_TILE, NV.stochastic, input=NV)),
    "four-over-six": (recipes.four_over_six(), three(BEST, BEST_TILE, HEADED, input=BEST)),
    "fp4-all-the-way": (
        recipes.fp4_all_the_way(),
        three(DIVIDED, DIVIDED, DIVIDED.stochastic, weight=DIVIDED.stochastic,
              input=DIVIDED.stochastic),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "data"), CASES)
@pytest.mark.parametrize("name", RULES)
def test_operands_are_what_the_rule_says(name: str, layer: str, data: str) -> None:
    check(*RULES[name], layer, data)


@pytest.mark.parametrize("name", ["nvfp4", "four-over-six"])
def test_operands_of_grad_weight_are_rotated_with_transformer_engines_signs(name: str) -> None:
    (signs,) = recorded("transformer_engine", "get_wgrad_sign_vector")
    matrix = np.ones((1, 1))
    while len(matrix) < 16:
        matrix = np.kron(matrix, [[1, 1], [1, -1]])
    matrix = torch.from_numpy(matrix) * signs["signs"].double()[:, None] / 4
    found = {slot: x for slot, x, _ in operands(RULES[name][0], "2-D", "gaussian")}
    for slot, plain in (
        (("grad_weight", "input"), found["forward", "input"]),
        (("grad_weight", "grad_output"), found["grad_input", "grad_output"]),
    ):
        tokens = torch.nn.functional.pad(plain[0].T.double(), (0, -plain.shape[1] % 16))
        exact = (tokens.unflatten(1, (-1, 16)) @ matrix).flatten(1)
        torch.testing.assert_close(found[slot][0].double(), exact, rtol=1e-5, atol=1e-5)


E2M1 = grid("e2m1")
E4M3 = grid("e4m3")


def check_eden(x: Array, q: QTensor) -> tuple[float, float, bool]:
    """Elements to nearest under e4m3 scales under one of the tensor; the scales then times
    sum y^2 / sum(y e) of 128 neighbours, up or down -> how far up in all, its variance, and
    whether any is not the nearest."""
    top = 6 / (17 / 16 * 0.93)
    outer = np.maximum(np.abs(x).max() / np.float32(top * 255.99), np.float32(2.0**-126))
    assert q.outer is not None and q.scale is not None and q.outer.item() == outer
    first = e4m3((amax(x, (1, 16)) / outer).astype(np.float32) / np.float32(top))
    t, _ = e2m1_under(x, first, outer, times=False)
    nearest = np.copysign(around(np.abs(t).astype(np.float64), E2M1)[2], t)
    assert np.array_equal(q.elements.numpy(), nearest)
    exact = first.astype(np.float64) * outer
    y = np.where(first > 0, x / np.where(first > 0, exact, 1), 0)
    own, dot = (over_blocks(y * other, (1, 128), np.sum) for other in (y, nearest))
    corrected = np.where(dot > 0, first * (own / np.where(dot > 0, dot, 1)), first)
    scale = q.spread(q.scale).double().numpy()[..., ::16]
    low, high, near = around(corrected.astype(np.float32)[..., ::16].astype(np.float64), E4M3)
    assert ((scale == low) | (scale == high)).all()
    inner = np.clip(corrected[..., ::16], low, high)
    variance = ((inner - low) * (high - inner)).sum()
    return (scale - inner).sum(), variance, bool((scale != near).any())


def check_quartet2(recipe: Recipe, layer: str, data: str) -> None:
    """Four Over Six by division forward; rotated, corrected and unbiased backward."""
    up = variance = 0.0
    for slot, x, q in operands(recipe, layer, data):
        if slot[0] == "forward":
            check_operand(DIVIDED_BEST, x.numpy(), q, slot)
        else:
            more, own, drawn = check_eden(x.numpy(), q)
            up, variance = up + more, variance + own
            if data != "tiny":  # where a step of the scale is as large as the scale
                assert drawn, slot
            assert abs(up) <= 6 * np.sqrt(variance)


@pytest.mark.parametrize(("layer", "data"), CASES)
def test_quartet2s_operands_are_what_the_rules_say(layer: str, data: str) -> None:
    check_quartet2(recipes.quartet2(), layer, data)


def check_rotation(recipe: Recipe, layer: str) -> None:
    """Rotated operands have the product of what was rotated, the forward's value among it."""
    found = {slot: (x.double(), q) for slot, x, q in operands(recipe, layer, "gaussian")}
    gradient = numbers("gaussian", 33, 40, seed=3).double()
    for product, name, plain in (
        ("grad_input", "weight", gradient), ("grad_weight", "input", gradient.T),
    ):  # fmt: skip
        value = found["forward", name][1].dequantize().double()
        made = found[product, "grad_output"][0] @ found[product, name][0].mT
        torch.testing.assert_close(made.squeeze(0), plain @ value.squeeze(0), rtol=1e-4, atol=1e-4)
        assert not torch.equal(
            found[product, "grad_output"][0].squeeze(0)[:, : plain.shape[1]], plain
        )


def test_quartet2_rotates_both_operands_of_the_forwards_values() -> None:
    check_rotation(recipes.quartet2(), "2-D")


def planted_in_quartet2() -> dict[str, tuple[Recipe, Any]]:
    recipe: Any = recipes.quartet2()
    own = recipe.grad_weight.grad_output

    def gradient(**changes: Any) -> Recipe:
        wrong = replace(own, scale=replace(own.scale, **changes))
        return replace(recipe, grad_weight=replace(recipe.grad_weight, grad_output=wrong))

    def operands_are(wrong: Recipe) -> None:
        check_quartet2(wrong, "2-D", "gaussian")

    return {
        "uncorrected": (gradient(correction=None), operands_are),
        "by 16": (gradient(correction=blocks(16)), operands_are),
        "nearest": (gradient(rounding=nearest_even, correction=blocks(128)), operands_are),
        "headroom": (gradient(headroom=17 / 16), operands_are),
        "source": (
            replace(recipe, grad_weight=replace(recipe.grad_weight, source="input")),
            lambda wrong: check_rotation(wrong, "2-D"),
        ),
    }


@pytest.mark.parametrize("name", planted_in_quartet2())
def test_a_planted_error_of_quartet2_is_seen(name: str) -> None:
    wrong, check_of_it = planted_in_quartet2()[name]
    with pytest.raises(AssertionError):
        check_of_it(wrong)


def drawn_nearest(recipe: Recipe) -> Any:
    return replace(recipe.grad_input.grad_output, rounding=nearest_even)  # type: ignore[type-var]


def planted(name: str) -> Recipe:
    recipe: Any = RULES[name][0]
    if name == "nvfp4":  # a weight cut as the input is
        return replace(recipe, forward=replace(recipe.forward, weight=recipe.forward.input))
    if name == "four-over-six":  # scales up to 448
        scale = replace(recipe.forward.input.scale, over=Scale(fp32, top=448))
        own = replace(recipe.forward.input, scale=scale)
        return replace(recipe, forward=replace(recipe.forward, input=own))
    own = drawn_nearest(recipe)
    return replace(recipe, grad_weight=GradWeight(grad_output=own, input=own))


@pytest.mark.parametrize("name", RULES)
def test_a_planted_error_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        check(planted(name), RULES[name][1], "2-D", "gaussian")


def test_one_level_of_scales_is_seen() -> None:
    recipe: Any = recipes.nvfp4()
    own = replace(recipe.forward.input, scale=Scale(formats.e4m3), granularity=blocks(16))
    wrong = replace(recipe, forward=replace(recipe.forward, input=own))
    with pytest.raises(AssertionError):
        check(wrong, RULES["nvfp4"][1], "2-D", "spread")


def equal(case: Recorded, own: Any) -> None:
    """Where the recorded scale is not 0, and elements are left at +-6."""
    made, scale = own(case.operand), case.spread()
    assert same_bits(made.spread(made.scale).expand(scale.shape), scale)
    assert torch.equal(made.elements[scale > 0], case["elements"][scale > 0])
    zero: Tensor = made.elements[scale == 0]
    assert bool((zero == 0).all())


@pytest.mark.parametrize("case", RECORDED["nvfp4"], ids=str)
def test_nvfp4_is_transformer_engines(case: Recorded) -> None:
    """Rotated operands too, which it records after the rotation."""
    recipe: Any = recipes.nvfp4()
    tile = case.settings["block"] == [16, 16]
    equal(case, recipe.forward.weight if tile else recipe.forward.input)
    if not tile:
        equal(case, drawn_nearest(recipe))


@pytest.mark.parametrize("case", RECORDED["four-over-six"], ids=str)
def test_four_over_six_is_its_authors(case: Recorded) -> None:
    recipe: Any = recipes.four_over_six()
    tile = case.settings["block"] == [16, 16]
    equal(case, recipe.forward.weight if tile else recipe.forward.input)


def test_its_gradients_have_the_authors_scales() -> None:
    """Of one candidate: their stochastic cases keep 6."""
    for case in recorded("fouroversix", round_style="stochastic_unbiased"):
        over = Scale(fp32, top=448)
        scale = Scale(formats.e4m3, over=over, reciprocal=True, headroom=17 / 16)
        own = replace(drawn_nearest(recipes.four_over_six()), scale=scale)
        made, wanted = own(case.operand), case.spread()
        assert same_bits(made.spread(made.scale).expand(wanted.shape), wanted)


FORWARD = [case for case in RECORDED["quartet2"] if "rtn_1x16s" in case.function]
BACKWARD = [case for case in RECORDED["quartet2"] if "eden_1x16s" in case.function]


@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_quartet2s_forward_is_its_authors(case: Recorded) -> None:
    made: Any = recipes.quartet2().forward.input(case.x, state=None)
    torch.testing.assert_close(made.dequantize(), case["values"], rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("case", BACKWARD, ids=str)
def test_quartet2s_backward_is_its_authors(case: Recorded) -> None:
    """Of 32 neighbours, as it was recorded: its draws are ours rounded down or up."""
    own: Any = recipes.quartet2().grad_input.grad_output
    scale, rows = replace(own.scale, correction=blocks(32)), case.operand.view(-1, 32)
    ends = []
    for rounding in (floor, ceil):
        q = replace(own, scale=replace(scale, rounding=rounding))(rows)
        ends.append(q.dequantize())
        assert q.outer.item() == pytest.approx(case["amax"].item() / 255.99 / 6 * 0.988125, 1e-6)
    theirs = case["values"].view(-1, 32)
    near = [torch.isclose(theirs, end, rtol=2.0**-20, atol=0) for end in ends]
    assert bool((near[0] | near[1]).all()) and not near[0].all() and not near[1].all()


@pytest.mark.parametrize("name", [*RULES, "quartet2"])
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < 0.08
