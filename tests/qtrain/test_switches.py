"""Parts of a model put back to full precision for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qtrain import models, quantize, recipes
from qtrain.diagnosis.parts import (
    PRODUCT_ROLES,
    rounded_parts,
    rounded_roles,
    switched_off,
    without,
)
from qtrain.inspection.inspect import inspect
from qtrain.recipe import GradInput
from quantizers import Off, accumulators, fp16


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def _step(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    loss = nn.functional.cross_entropy(model(x), y)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_int8_rounds_four_roles_and_reuses_the_forwards_operands() -> None:
    assert rounded_roles(recipes.int8()) == (
        "input",
        "weight",
        "grad_output (grad_input)",
        "grad_output (grad_weight)",
    )
    assert rounded_roles(replace(recipes.int8(), activation=fp16))[2] == "output"
    own = replace(recipes.int8(), grad_input=GradInput(weight=recipes.int8(bits=4).forward.weight))
    assert "weight (grad_input)" in rounded_roles(own)


def test_parts_come_in_network_order() -> None:
    parts = rounded_parts(quantize(_net()))
    assert [name for name, role in parts if role == "weight"] == ["0", "2"]
    assert len(parts) == 8


def test_with_every_part_off_the_model_is_the_unconverted_one_bit_for_bit() -> None:
    net = _net()
    model = quantize(net)
    with switched_off(model, rounded_parts(model)):
        assert _equal(_step(model), _step(net))
    assert not torch.equal(_step(model)[0], _step(net)[0])


def test_the_model_is_as_before_afterwards_even_after_an_error() -> None:
    model = quantize(_net())
    before = [m.recipe for m in (model[0].product, model[2].product)]
    with pytest.raises(RuntimeError), switched_off(model, rounded_parts(model)[:3]):
        assert [m.recipe for m in (model[0].product, model[2].product)] != before
        raise RuntimeError
    assert [m.recipe for m in (model[0].product, model[2].product)] == before


@pytest.mark.parametrize("role", ["input", "weight", "grad_output (grad_input)"])
def test_a_part_that_is_off_has_no_error_and_the_others_keep_theirs(role: str) -> None:
    model = quantize(_net())
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    with switched_off(model, [("2", role)]):
        rows = {(r.layer, r.role): r.sqnr_db for r in inspect(model, x, y).rows}
    assert rows.get(("2", role), torch.inf) == torch.inf
    others = [k for k in rounded_parts(model) if k != ("2", role) and k[1] != role]
    assert all(rows[key] < 100 for key in others if key in rows and key[0] == "2")


def test_bf16_units_become_fp32_where_an_operand_is_in_full_precision() -> None:
    recipe = recipes.int8(unit="bf16")
    for role in ("input", "grad_output (grad_weight)"):
        assert without(recipe, [role]).grad_weight.unit == "fp32"
    assert without(recipe, ["grad_output (grad_input)"]).grad_weight.unit == "bf16"


def test_what_takes_full_precision_is_summed_without_an_accumulator() -> None:
    whole = accumulators.integer(24, overflow="wrap")
    recipe = recipes.int8()
    recipe = replace(
        recipe,
        forward=replace(recipe.forward, accumulator=whole),
        grad_input=replace(recipe.grad_input, accumulator=whole),
        grad_weight=replace(recipe.grad_weight, accumulator=accumulators.sequential(fp16)),
    )
    for role, kept in (
        ("input", ["grad_input"]),
        ("weight", ["grad_weight"]),
        ("grad_output (grad_input)", ["forward", "grad_weight"]),
    ):
        assert [p for p, unit in without(recipe, [role]).units.items() if unit] == kept
    every = [role for own in PRODUCT_ROLES.values() for role in own]
    assert without(recipe, every).products_off


def test_all_roles_off_leave_nothing() -> None:
    recipe = replace(recipes.int8(unit="bf16"), activation=fp16, narrow=True)
    plain = without(recipe, [role for own in PRODUCT_ROLES.values() for role in own])
    assert plain.products_off and rounded_roles(plain) == ()
    assert isinstance(without(recipe, ["input"]).slot("grad_weight", "input"), Off)


def test_half_of_an_attention_can_be_off() -> None:
    torch.manual_seed(0)
    net = models.get("chartransformer", num_classes=11, context=8)
    model = quantize(net)
    tokens = torch.randint(0, 11, (2, 8))
    whole = model(tokens)
    scores = [p for p in rounded_parts(model) if p[0].endswith("scores")]
    context = [p for p in rounded_parts(model) if p[0].endswith("context")]
    assert scores and context
    with switched_off(model, scores):
        half = model(tokens)
    with switched_off(model, scores + context):
        neither = model(tokens)
    assert not torch.equal(whole, half) and not torch.equal(half, neither)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (("9", "input"), "nothing in '9'"),
        (("0", "output"), "no 'output' there, only input, weight"),
        (("0", "sideways"), "no 'sideways' there"),
    ],
)
def test_an_unknown_part_is_an_error(part: tuple[str, str], says: str) -> None:
    model = quantize(_net())
    with pytest.raises(ValueError, match=says), switched_off(model, [part]):
        pass
    with pytest.raises(ValueError, match="need one of input, weight"):
        without(recipes.int8(), ["sideways"])
