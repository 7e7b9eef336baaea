"""The narrowest accumulators, against those that are a bit narrower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from block_cases import normal
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Recipe, inspect, quantize, required_bits
from quantizers import (
    FloatFormat,
    LSQPlus,
    Quantizer,
    RealOffset,
    accumulate,
    accumulators,
    e4m3,
    e5m2,
    int8,
    minmax,
    uint8,
)

WHOLE = Quantizer(format=int8)
INT8 = Recipe(
    name="int8s",
    forward=Forward(input=WHOLE, weight=WHOLE),
    grad_input=GradInput(grad_output=WHOLE),
    grad_weight=GradWeight(grad_output=WHOLE),
)
FP8 = Recipe(
    name="fp8s",
    forward=Forward(input=Quantizer(format=e4m3), weight=Quantizer(format=e4m3)),
    grad_input=GradInput(grad_output=Quantizer(format=e5m2)),
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))


BATCH = normal(25, 40), torch.arange(25) % 3


def error(unit: Any, a: Tensor, w: Tensor) -> float:
    got, exact = (
        accumulate(a.unsqueeze(1), w.unsqueeze(0), one).double()
        for one in (unit, accumulators.exact())
    )
    return float(((got - exact).square().sum() / exact.square().sum()).sqrt())


@pytest.mark.parametrize("recipe", [INT8, FP8], ids=lambda recipe: recipe.name)
def test_a_bit_less_errs_more(recipe: Recipe) -> None:
    model = quantize(net(), recipe=recipe)
    found = required_bits(model, *BATCH, error=0.02)
    assert [(row.layer, row.product) for row in found.rows] == [
        ("0", "forward"), ("0", "grad_weight"),
        ("2", "forward"), ("2", "grad_input"), ("2", "grad_weight"),
    ]  # fmt: skip
    first: Any = found.rows[0]
    forward: Any = recipe.forward
    a, w = forward.input(BATCH[0]).elements, forward.weight(model[0].weight.detach()).elements
    assert (
        first.error == pytest.approx(error(first.accumulator, a, w), rel=1e-3)
        and first.error <= 0.02
    )
    if recipe is INT8:
        assert first.bits == first.accumulator.bits
        less = replace(first.accumulator, bits=first.bits - 1)
    else:
        fmt = first.accumulator.format
        assert first.bits == fmt.bits
        less = replace(first.accumulator, format=replace(fmt, mantissa=fmt.mantissa - 1))
    assert error(less, a, w) > 0.02
    assert "forward" in str(found) and str(first.accumulator) in str(found)


def test_they_are_overrides() -> None:
    model = quantize(net(), recipe=INT8)
    found = required_bits(model, *BATCH, error=1e-9)
    made = quantize(net(), recipe=INT8, overrides=found.overrides)
    rows = [row for row in inspect(made, *BATCH).rows if row.role.endswith("(accumulator)")]
    assert len(rows) == 5 and all(row.sqnr_db > 170 for row in rows)
    assert torch.equal(made(BATCH[0]), model(BATCH[0]))


def test_what_none_bears_stays_as_it_is_and_attention_is_one_layer() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.attention(x, x, x)[0]
            return found

    model = quantize(Self(), recipe=FP8)
    found = required_bits(model, normal(2, 5, 8), loss=lambda y: y.square().sum(), error=0.05)
    kinds = ("forward", "grad_input", "grad_weight")
    layers = "attention", "attention.out_proj"
    rows = [(row.layer, row.product) for row in found.rows]
    assert rows == [(layer, kind) for layer in layers for kind in kinds if (layer, kind) in rows]
    assert len(rows) >= 5
    quantize(Self(), recipe=FP8, overrides=found.overrides)(normal(2, 5, 8))
    none = required_bits(quantize(net(), recipe=FP8), *BATCH, error=1e-12)
    assert {row.accumulator for row in none.rows if row.error > 1e-12} == {None}
    assert none.overrides["0"].forward == FP8.forward


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="required_bits: the model has no quantized layer"):
        required_bits(nn.Linear(2, 2), normal(1, 2))
    with pytest.raises(ValueError, match="error: got 0, need a finite number above 0"):
        required_bits(quantize(net()), BATCH[0], error=0)


@pytest.mark.parametrize(
    ("recipe", "narrow"),
    [
        (INT8, accumulators.integer(9, overflow="saturate")),
        (FP8, accumulators.sequential(FloatFormat(4, 2, specials="ieee"))),
    ],
    ids=["int8", "fp8"],
)
def test_the_models_own_accumulators_do_not_count(recipe: Recipe, narrow: Any) -> None:
    """However narrow: what overflows in one layer would be the next one's operand."""
    with pytest.warns(UserWarning, match="required_bits finds the narrowest"):
        model = quantize(net(), recipe=replace(recipe, accumulator=narrow))
    found = required_bits(model, *BATCH)
    wide = required_bits(quantize(net(), recipe=recipe), *BATCH)
    assert found.rows and all(row.accumulator is not None for row in found.rows)
    assert [(row.product, row.accumulator) for row in found.rows] == [
        (row.product, row.accumulator) for row in wide.rows
    ]


def test_errors_are_relative_to_the_sums_without_the_bias() -> None:
    one, other = (nn.Sequential(nn.Linear(40, 3, bias=bias)) for bias in (True, False))
    with torch.no_grad():
        one[0].bias.fill_(1e4)
        other[0].weight.copy_(one[0].weight)
    biased, plain = (required_bits(quantize(each, recipe=INT8), BATCH[0]) for each in (one, other))
    assert biased.rows == plain.rows and biased.rows[0].bits > 10


@pytest.mark.parametrize(
    "operand",
    [LSQPlus(format="int4"), RealOffset(Quantizer(format=uint8, range=minmax))],
    ids=["learned", "of a range"],
)
def test_an_operand_with_a_real_offset_is_no_integer(operand: Any) -> None:
    forward = Forward(input=operand, weight=WHOLE)
    found = required_bits(quantize(net(), recipe=replace(INT8, forward=forward)), *BATCH)
    kinds = {(row.product, type(row.accumulator)) for row in found.rows}
    assert kinds == {
        ("forward", accumulators.Sequential),
        ("grad_input", accumulators.Integer),
        ("grad_weight", accumulators.Sequential),
    }
    narrow = accumulators.integer(16, overflow="wrap")
    with pytest.raises(ValueError, match="multiplies integers, but input is "):
        Recipe(name="own", forward=replace(forward, accumulator=narrow))
    backward = GradWeight(grad_output=Quantizer(format="bf16", range=None), unit="bf16")
    with pytest.raises(ValueError, match="'bf16' holds 8 significant bits, but input is "):
        Recipe(name="own", forward=forward, grad_weight=backward)


def test_products_whose_sums_are_all_0_have_no_row() -> None:
    model = quantize(nn.Sequential(nn.Linear(40, 3)), recipe=INT8)
    found = required_bits(model, torch.zeros(0, 40), torch.zeros(0, dtype=torch.int64))
    assert not found.rows and not found.overrides and "layer" in str(found)
    found = required_bits(model, torch.zeros(5, 40), torch.arange(5) % 3)
    assert not found.rows
