"""The NVFP4 recipes: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recipe_cases import CASES, Slots, by_division, check, operands, te, three, trained
from recorded_results import Recorded, recorded
from torch import Tensor

from qtrain import GradWeight, Recipe, recipes
from quantizers import Scale, blocks, e4m3, fp32, nearest_even

NV, NV_TILE, DIVIDED = te(), te((16, 16)), by_division()
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
    own = replace(recipe.forward.input, scale=Scale(e4m3), granularity=blocks(16))
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


TE = recorded("transformer_engine", "NVFP4QuantizerRef.quantize", levels=2)


@pytest.mark.parametrize(
    "case",
    [c for c in TE if not {"nvfp4_use_4over6", "row_scaled_nvfp4"} & set(c.settings)],
    ids=str,
)
def test_nvfp4_is_transformer_engines(case: Recorded) -> None:
    """Rotated operands too, which it records after the rotation."""
    recipe: Any = recipes.nvfp4()
    tile = case.settings["block"] == [16, 16]
    equal(case, recipe.forward.weight if tile else recipe.forward.input)
    if not tile:
        equal(case, drawn_nearest(recipe))


@pytest.mark.parametrize(
    "case",
    recorded("fouroversix", format="nvfp4", round_style="nearest", scale_rule="mse"),
    ids=str,
)
def test_four_over_six_is_its_authors(case: Recorded) -> None:
    if case.data in ("tiny", "huge", "halves", "midpoints"):
        pytest.skip("fp32 decides between two errors that are equal, overflow or vanish")
    recipe: Any = recipes.four_over_six()
    tile = case.settings["block"] == [16, 16]
    equal(case, recipe.forward.weight if tile else recipe.forward.input)


def test_its_gradients_have_the_authors_scales() -> None:
    """Of one candidate: their stochastic cases keep 6."""
    for case in recorded("fouroversix", round_style="stochastic_unbiased"):
        over = Scale(fp32, top=448)
        scale = Scale(e4m3, over=over, reciprocal=True, headroom=17 / 16)
        own = replace(drawn_nearest(recipes.four_over_six()), scale=scale)
        made, wanted = own(case.operand), case.spread()
        assert same_bits(made.spread(made.scale).expand(wanted.shape), wanted)


@pytest.mark.parametrize("name", RULES)
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < 0.08
