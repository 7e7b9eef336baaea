"""Recipes of integers and LUQ: bits of every operand, planted errors, a training run."""

from __future__ import annotations

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
    Array,
    Place,
    Rule,
    Slots,
    check,
    check_operand,
    divided,
    numbers,
    operands,
    steps,
    three,
    trained,
)
from recorded_results import Recorded

from qtrain import GradInput, Recipe, recipes
from quantizers import (
    QTensor,
    RealOffset,
    Scale,
    absmax,
    blocks,
    ema,
    minmax,
    nearest_even,
    per_tensor,
    root_key,
    stochastic,
)

ROWS, TILES, ALL = divided("int8", (1, 10**9)), divided("int8", (32, 32)), divided("int8", None)
INT8, INT4, E3M0 = divided("int8", None), divided("int4", None), divided("e3m0", None).stochastic


def clipped(x: Array, tile: Any) -> Any:
    """Under the scale of nine by which the angle between x and its values is the smallest."""
    best, found = 2.0, None
    for power in range(9):
        scale = (np.abs(x).max().astype(np.float64) / (127 * 2 ** (power / 2))).astype(np.float32)
        t = (x / scale).astype(np.float32)
        near = np.clip(np.rint(t), -127, 127).astype(np.float64) * scale
        exact = x.astype(np.float64)
        angle = 1 - (near * exact).sum() / np.sqrt((near**2).sum() * (exact**2).sum())
        if angle < best - 1e-13:
            best, found = angle, (t, np.broadcast_to(scale, x.shape))
    return found


CLIPPED = Rule("int8", None, clipped).stochastic
RULES: dict[str, tuple[Recipe, Slots]] = {
    "jetfire": (recipes.jetfire(), three(TILES, TILES, TILES.stochastic, input=TILES)),
    "luq": (recipes.luq(), three(INT4, INT4, E3M0)),
    "unified-int8": (recipes.unified_int8(), three(INT8, INT8, CLIPPED)),
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


Ends = tuple[Any, Any]


def ends(x: Array, own: bool = False) -> Ends:
    """The least and the greatest, of a sample's own or all."""
    axes = tuple(range(1 if own else 0, x.ndim))
    return x.min(axes, keepdims=True), x.max(axes, keepdims=True)


def check_levels(elements: Array, t: Array, top: Any, bottom: Any, drawn: bool) -> None:
    """Elements are t rounded and clipped: to nearest, or to a neighbour and without a bias."""
    clipped = np.clip(t, bottom, top).astype(np.float64)
    if not drawn:
        assert np.array_equal(elements, np.rint(clipped))
        return
    low, high = np.floor(clipped), np.ceil(clipped)
    assert ((elements == low) | (elements == high)).all()
    spread = np.sqrt(((clipped - low) * (high - clipped)).sum())
    assert abs((elements - clipped).sum()) <= 6 * spread
    assert (elements != np.rint(clipped)).any() or spread < 5


def check_affine(x: Array, q: QTensor, low: Any, high: Any, drawn: bool) -> None:
    """scale = (high - low) / 255 with 0 between them, zero point round(-low / scale)."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    half = high / np.float32(2) - low / np.float32(2)  # which fits, where high - low may not
    scale = (2 * half.astype(np.float64) / 255).astype(np.float32)
    zero = np.clip(-np.rint((low / scale).astype(np.float32)), 0, 255)
    assert q.scale is not None and q.zero_point is not None
    assert np.array_equal(q.scale.numpy().flatten(), scale.flatten())
    assert np.array_equal(q.zero_point.numpy().flatten(), zero.flatten())
    t = (x / scale).astype(np.float32)
    check_levels(q.elements.double().numpy() - zero, t, 255 - zero, -zero, drawn)


def check_offset(x: Array, q: QTensor, own: bool, drawn: bool) -> None:
    """Values low + k (high - low) / 255, in fp64, rounded once."""
    low, high = (end.astype(np.float64) for end in ends(x, own))
    step = (high - low) / 255
    assert q.scale is None and q.zero_point is None
    values = q.elements.numpy()
    levels = np.rint((values - low) / step)
    assert np.array_equal((low + step * levels).astype(np.float32), values)
    check_levels(levels, (x - low) / step, 255, 0, drawn)


def check_statquant(recipe: Recipe, layer: str, data: str) -> None:
    seen = set()
    for slot, x, q in operands(recipe, layer, data):
        if slot in (("forward", "input"), ("grad_input", "grad_output")):
            check_offset(x.numpy(), q, slot[0] == "grad_input", slot[0] == "grad_input")
        else:
            check_affine(x.numpy(), q, *ends(x.numpy()), slot[0] == "grad_weight")
        seen.add(slot)
    assert seen == set(three(None, None, None))


@pytest.mark.parametrize(("layer", "data"), CASES)
def test_statquants_operands_are_affine_and_gradients_unbiased(layer: str, data: str) -> None:
    check_statquant(recipes.statquant(), layer, data)


def check_in_hindsight(recipe: Recipe, layer: str, data: str) -> None:
    """Four steps: each under the running range of those before, the first one's own to begin."""
    before: dict[Place, Ends] = {}
    for place, x, q in steps(recipe, layer, data, (1, 4, 0.25, 2)):
        new = ends(x.numpy())
        used = new if place[2] == "weight" and place[1] == "forward" else before.get(place, new)
        check_affine(x.numpy(), q, *used, place[1] != "forward")
        half = np.float32(0.5)
        moved = [((n * half - o * half) * np.float32(0.1) + o * half) * np.float32(2)
                 for n, o in zip(new, before.get(place, new), strict=True)]  # fmt: skip
        before[place] = new if place not in before else (moved[0], moved[1])
    assert {place[1:] for place in before} == set(three(None, None, None))


HINDSIGHT = [("2-D", "gaussian"), ("3-D", "heavy-tailed"), ("convolution", "tied"),
             ("attention", "bf16"), ("2-D", "tiny"), ("2-D", "huge")]  # fmt: skip


@pytest.mark.parametrize(("layer", "data"), HINDSIGHT)
def test_ranges_in_hindsight_are_those_of_the_steps_before(layer: str, data: str) -> None:
    check_in_hindsight(recipes.in_hindsight(), layer, data)


@pytest.mark.parametrize("range", [minmax, ema(minmax, 0.1), ema(minmax, 0.2, use="previous")])
def test_another_past_is_seen(range: Any) -> None:
    recipe: Any = recipes.in_hindsight()
    wrong = replace(recipe.grad_input.grad_output, range=range)
    with pytest.raises(AssertionError):
        check_in_hindsight(
            replace(recipe, grad_input=GradInput(grad_output=wrong)), "2-D", "gaussian"
        )


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


def test_gradients_of_unified_int8_are_clipped_where_the_angle_is_smallest() -> None:
    """Of 100,000 cubes of normal numbers: what is clipped outweighs finer steps only in many."""
    own: Any = recipes.unified_int8().grad_input.grad_output
    x = numbers("heavy-tailed", 100, 1000, seed=1)
    q = own(x, key=root_key(0))
    check_operand(CLIPPED, x.numpy(), q, "gradient")
    assert q.scale.item() * 127 < x.abs().max() < q.scale.item() * 127 * 1.5
    for wrong in (Scale(), Scale(candidates=own.scale.candidates, by="mae")):
        assert replace(own, scale=wrong, rounding=nearest_even)(x).scale != q.scale


def test_a_planted_error_of_switchback_is_seen(monkeypatch: Any) -> None:
    right: Any = recipes.switchback()
    whole = replace(right.forward.input, granularity=per_tensor)
    wrong = replace(right, grad_input=GradInput(grad_output=whole))
    monkeypatch.setattr(recipes, "switchback", lambda: wrong)
    with pytest.raises(AssertionError):
        test_switchback_quantizes_rows_and_leaves_16_bits_to_grad_weight()


def test_planted_errors_of_statquant_are_seen() -> None:
    right: Any = recipes.statquant()
    own = right.grad_input.grad_output.of
    for wrong in (RealOffset(replace(own, granularity=per_tensor)), own):
        recipe = replace(right, grad_input=GradInput(grad_output=wrong))
        with pytest.raises(AssertionError):
            check_statquant(recipe, "2-D", "gaussian")


@pytest.mark.parametrize("case", RECORDED["jetfire"], ids=str)
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


@pytest.mark.parametrize(
    "name", ["switchback", "jetfire", "statquant", "in-hindsight", "luq", "unified-int8"]
)
def test_digits_are_learned(name: str) -> None:
    assert abs(trained(name) - trained("fp32")) < (0.06 if name == "luq" else 0.02)
