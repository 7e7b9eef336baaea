"""SwitchBack, Jetfire, StatQuant and LUQ: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recipe_cases import CASES, Slots, check, check_operand, divided, operands, three, trained
from recorded_results import Recorded, recorded

from qtrain import GradInput, Recipe, recipes
from quantizers import absmax, blocks, nearest_even, per_tensor, root_key, stochastic

ROWS, TILES, ALL = divided("int8", (1, 10**9)), divided("int8", (32, 32)), divided("int8", None)
INT4, E3M0 = divided("int4", None), divided("e3m0", None).stochastic
RULES: dict[str, tuple[Recipe, Slots]] = {
    "jetfire": (recipes.jetfire(), three(TILES, TILES, TILES.stochastic, input=TILES)),
    "luq": (recipes.luq(), three(INT4, INT4, E3M0)),
}


@pytest.mark.parametrize(("layer", "data"), CASES)
@pytest.mark.parametrize("name", RULES)
def test_operands_are_what_the_rule_says(name: str, layer: str, data: str) -> None:
    check(*RULES[name], layer, data)


def test_switchback_quantizes_rows_and_leaves_16_bits_to_grad_weight() -> None:
    for layer, data in CASES:
        rules = {
            ("forward", "input"): ROWS, ("forward", "weight"): ALL,
            ("grad_input", "grad_output"): ROWS,
        }  # fmt: skip
        for slot, x, q in operands(recipes.switchback(), layer, data):
            if slot in rules:
                check_operand(rules[slot], x.numpy(), q, slot)
            else:
                exact = x.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
                assert slot[0] == "grad_weight" and q.scale is None
                assert np.array_equal(q.elements.float().numpy(), exact)


def affine(x: np.ndarray[Any, Any], own: bool) -> tuple[Any, Any, Any]:
    """scale = (high - low) / 255, zero point round(-low / scale); of a sample's own range or all;
    -> elements before they are rounded, less the zero point, scale, zero point."""
    axes = tuple(range(1 if own else 0, x.ndim))
    low = np.minimum(x.min(axes, keepdims=True), 0)
    high = np.maximum(x.max(axes, keepdims=True), 0)
    half = high / np.float32(2) - low / np.float32(2)  # which fits, where high - low may not
    scale = (2 * half.astype(np.float64) / 255).astype(np.float32)
    zero = np.clip(-np.rint((low / scale).astype(np.float32)), 0, 255)
    return (x / scale).astype(np.float32), scale, zero


@pytest.mark.parametrize(("layer", "data"), CASES)
def test_statquants_operands_are_affine_and_gradients_unbiased(layer: str, data: str) -> None:
    seen = set()
    for slot, x, q in operands(recipes.statquant(), layer, data):
        t, scale, zero = affine(x.numpy(), slot[0] == "grad_input")
        assert q.scale is not None and q.zero_point is not None
        assert np.array_equal(q.scale.numpy().flatten(), scale.flatten()), slot
        assert np.array_equal(q.zero_point.numpy().flatten(), zero.flatten()), slot
        elements = q.elements.double().numpy() - zero
        if slot[0] == "forward":
            assert np.array_equal(elements, np.clip(np.rint(t), -zero, 255 - zero)), slot
        else:
            clipped = np.clip(t, -zero, 255 - zero)
            low, high = np.floor(clipped), np.ceil(clipped)
            assert ((elements == low) | (elements == high)).all(), slot
            spread = np.sqrt(((clipped - low) * (high - clipped)).sum())
            assert abs((elements - clipped).sum()) <= 6 * spread
            assert (elements != np.rint(clipped)).any() or spread < 5
        seen.add(slot)
    assert seen == {
        ("forward", "input"), ("forward", "weight"), ("grad_input", "grad_output"),
        ("grad_weight", "grad_output"),
    }  # fmt: skip


def planted(name: str) -> Recipe:
    recipe: Any = recipes.get(name)
    if name == "jetfire":  # blocks of a row
        own = replace(recipe.forward.input, granularity=blocks(32))
        return replace(recipe, forward=replace(recipe.forward, input=own))
    own = replace(recipe.grad_input.grad_output, rounding=nearest_even)  # biased underflow
    return replace(recipe, grad_input=GradInput(grad_output=own))


@pytest.mark.parametrize("name", RULES)
def test_a_planted_error_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        check(planted(name), RULES[name][1], "2-D", "gaussian")


def test_planted_errors_of_switchback_and_statquant_are_seen(monkeypatch: Any) -> None:
    right: Any = recipes.switchback()
    whole = replace(right.forward.input, granularity=per_tensor)
    wrong = replace(right, grad_input=GradInput(grad_output=whole))
    monkeypatch.setattr(recipes, "switchback", lambda: wrong)
    with pytest.raises(AssertionError):
        test_switchback_quantizes_rows_and_leaves_16_bits_to_grad_weight()
    right = recipes.statquant()
    shared = GradInput(grad_output=right.grad_weight.grad_output)
    wrong = replace(right, grad_input=shared)
    monkeypatch.setattr(recipes, "statquant", lambda: wrong)
    with pytest.raises(AssertionError):
        test_statquants_operands_are_affine_and_gradients_unbiased("2-D", "gaussian")


@pytest.mark.parametrize("case", recorded("jetfire", stochastic=False), ids=str)
def test_jetfires_elements_are_its_kernels(case: Recorded) -> None:
    """Recorded before it stores its scales in fp16."""
    recipe: Any = recipes.jetfire()
    drawn = replace(recipe.grad_input.grad_output, rounding=nearest_even)
    for own in (recipe.forward.input, drawn):
        q, where = own(case.operand), case.largest() > 0
        assert torch.equal(q.elements.float()[where], case["elements"].float()[where])
        scale = q.spread(q.scale).expand(where.shape)
        assert same_bits(scale[where], case.spread()[where])


def test_luqs_underflow_is_stochastic_and_its_mean_exact() -> None:
    """Of 2^16 draws: below the smallest power of two, and between two of them."""
    own: Any = recipes.luq().grad_input.grad_output
    assert own.rounding == stochastic() and own.range == absmax
    for share in (0.1, 0.5, 3.0, 40.0):  # of the smallest; 64 is the largest
        x = torch.full((2**16,), share)
        x[0] = 64.0
        values = own(x, key=root_key(0)).dequantize()[1:].double()
        low = 0.0 if share < 1 else 2.0 ** np.floor(np.log2(share))
        high = 1.0 if share < 1 else 2 * low
        assert set(values.unique().tolist()) == {low, high}
        sigma = np.sqrt((share - low) * (high - share) / 2**16)
        assert abs(values.mean().item() - share) < 5 * sigma


@pytest.mark.parametrize("name", ["switchback", "jetfire", "statquant", "luq"])
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < (0.06 if name == "luq" else 0.02)
