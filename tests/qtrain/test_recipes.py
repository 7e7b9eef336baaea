"""The named recipes say what their sources say, and train."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import Forward, GradInput, GradWeight, Recipe, quantize, recipes
from quantizers import OFF, IntFormat, Quantizer, bf16, fp16, int8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_int8_is_what_the_design_says() -> None:
    r = recipes.int8()
    x: Any = r.forward.input
    w: Any = r.forward.weight
    g: Any = r.grad_input.grad_output
    g2: Any = r.grad_weight.grad_output
    assert (x.format.low, x.format.high, x.format.symmetric) == (0, 255, False)
    assert (w.format.low, w.format.high) == (g.format.low, g.format.high) == (-127, 127)
    assert str(w.granularity) == "per axis 0,1" and str(g.granularity) == "per tensor"
    assert g.rounding.mode == "stochastic" and x.rounding.mode == w.rounding.mode == "nearest_even"
    assert g2.format == bf16 and g2.range is None
    assert r.activation is None and r.norm is None
    assert r.reuses("grad_input", "weight") and r.reuses("grad_weight", "input")


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_bits_set_the_three_int8_slots_and_leave_the_wide_copy(bits: int) -> None:
    r = recipes.int8(bits)
    slots: Any = (r.forward.input, r.forward.weight, r.grad_input.grad_output)
    assert all(q.format.bits == bits for q in slots)
    assert r.grad_weight == recipes.int8().grad_weight
    assert r == recipes.int8().at(bits) == recipes.get("int8", bits)
    paper = recipes.banner2018(bits)
    slots = (paper.forward.input, paper.forward.weight, paper.grad_input.grad_output)
    assert all(q.format.bits == bits for q in slots)
    assert str(bits) in r.name or bits == 8


def test_banner2018_follows_the_text_and_the_code_by_option() -> None:
    text, code = recipes.banner2018(), recipes.banner2018(variant="code")
    wide: Any = text.grad_weight.grad_output
    assert wide.format == IntFormat(16) and code.grad_weight.grad_output == OFF
    inputs: Any = text.forward.input
    code_inputs: Any = code.forward.input
    assert inputs.rounding.mode == "nearest_even" and code_inputs.rounding.mode == "stochastic"
    assert text.norm is not None and code.norm is not None
    assert text.norm.deviation.name == code.norm.deviation.name == "range"
    assert text.norm.deviation != code.norm.deviation
    assert code.at(4).grad_weight.grad_output == OFF
    with pytest.raises(ValueError, match="variant: got 'poster'"):
        recipes.banner2018(variant="poster")  # type: ignore[arg-type]


def test_the_baselines_round_every_operand_and_output() -> None:
    for recipe, fmt in ((recipes.bf16(), bf16), (recipes.fp16(), fp16)):
        q = Quantizer(format=fmt, range=None)
        assert {recipe.slot(*s) for s in (("forward", "input"), ("grad_input", "weight"),
                ("grad_weight", "grad_output"))} == {q}  # fmt: skip
        assert recipe.activation == fmt
    assert recipes.fp32().products_off


@pytest.mark.parametrize("name", recipes.names())
def test_names_give_recipes_that_print_pickle_and_compare(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name and recipe == recipes.get(name)
    assert str(recipe).startswith(f"{name}: ") and "\n" not in str(recipe)
    assert recipes.takes_bits(name) == (recipe.with_bits is not None)
    assert hash(recipe) == hash(recipes.get(name))
    model = quantize(nn.Linear(2, 2), recipe=recipe)
    assert pickle.loads(pickle.dumps(model)).product.recipe.name == name


@pytest.mark.parametrize(
    ("name", "bits", "error", "message"),
    [
        ("int-8", None, ValueError, "unknown recipe 'int-8'; did you mean 'int8'"),
        ("Banner2018", None, ValueError, "did you mean 'banner2018'"),
        ("", None, ValueError, "unknown recipe ''"),
        ("fp32", 8, ValueError, "'fp32' has no bits to set; leave bits out"),
        ("bf16", 16, ValueError, "'bf16' has no bits"),
        ("int8", 1, ValueError, "bits: got 1"),
        ("int8", 17, ValueError, "bits: got 17"),
        ("int8", 7.5, TypeError, r"bits: got 7\.5"),
        ("banner2018", True, TypeError, "bits: got True"),
        ("banner2018", "8", TypeError, "bits: got '8'"),
    ],
)
def test_bad_names_and_bits(name: str, bits: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        recipes.get(name, bits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(name="x", forward=8), r"forward: got 8, need Forward\(\.\.\.\)"),  # type: ignore
        (lambda: Recipe(name="x", grad_input=Forward()), "grad_input: got .*need GradInput"),  # type: ignore
        (lambda: Recipe(name="x", activation="fp16"), "activation: got 'fp16'"),  # type: ignore
        (lambda: Recipe(name="x", norm="range"), "norm: got 'range'"),  # type: ignore
        (lambda: Forward(weight=int8), r"forward\.weight: got IntFormat"),  # type: ignore
        (lambda: GradInput(grad_output=None), r"grad_input\.grad_output: got None"),  # type: ignore
        (lambda: GradWeight(input=3), r"grad_weight\.input: got 3"),  # type: ignore
    ],
    ids=["forward", "swapped", "activation", "norm", "a format", "none", "a number"],
)
def test_a_recipe_of_wrong_parts_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_a_backward_operand_is_the_forwards_unless_named() -> None:
    q = Quantizer(format=int8)
    recipe = Recipe(name="x", forward=Forward(weight=q), grad_input=GradInput(grad_output=q))
    assert recipe.slot("grad_input", "weight") is q and recipe.reuses("grad_input", "weight")
    other = replace(recipe, grad_input=GradInput(grad_output=q, weight=OFF))
    assert other.slot("grad_input", "weight") == OFF
    assert not other.reuses("grad_input", "weight")
    assert "weight for grad_input OFF" in str(other)
    same = replace(recipe, grad_input=GradInput(grad_output=q, weight=Quantizer(format=int8)))
    assert same.reuses("grad_input", "weight")


@pytest.mark.parametrize("name", recipes.names())
def test_a_convolutional_network_learns_under_every_recipe(name: str) -> None:
    """40 steps on two separable classes, beside full precision from the same weights."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2),
    )  # fmt: skip
    x = normal(64, 1, 8, 8)
    y = (x[:, 0, :, :4].mean((1, 2)) > x[:, 0, :, 4:].mean((1, 2))).long()
    losses = {}
    for label, model in (("plain", plain), (name, quantize(plain, recipe=name))):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses[label] = loss.item()
    assert losses[name] < 0.1
    if name == "fp32":
        assert losses[name] == losses["plain"]


def test_eight_bits_are_nearer_than_four_and_four_than_two() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 16), normal(32, 64)
    exact = layer(x)
    errors = [(quantize(layer, bits)(x) - exact).norm().item() for bits in (2, 4, 8, 12, 16)]
    assert errors == sorted(errors, reverse=True)
    # 6 dB a bit: from 8 to 12 bits the error falls 16-fold
    assert errors[2] / errors[3] == pytest.approx(16, rel=0.3)


def test_bf16_units_are_asked_for_by_name_and_round_the_result() -> None:
    recipe = recipes.int8(unit="bf16")
    assert recipe.at(4).grad_weight.unit == "bf16" and "in bf16 units" in str(recipe)
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(8, 16, 3, padding=1)
    x = torch.randn(8, 8, 8, 8)
    grads = {}
    for unit in ("fp32", "bf16"):
        model = quantize(plain, recipe=recipes.int8(unit=unit))
        model(x).square().sum().backward()
        assert model.weight.grad is not None
        grads[unit] = model.weight.grad
    assert not torch.equal(grads["fp32"], grads["bf16"])
    # one rounding to bf16: half a unit in the last of 8 places, and fp32's own error
    torch.testing.assert_close(grads["bf16"], grads["fp32"], rtol=2**-8, atol=1e-4)


def test_bf16_units_refuse_what_they_cannot_hold() -> None:
    recipe = recipes.int8()
    with pytest.raises(ValueError, match=r"grad_output is OFF; quantize it"):
        replace(recipe, grad_weight=GradWeight(unit="bf16"))
    with pytest.raises(ValueError, match=r"input is uint9"):
        recipes.int8(9, unit="bf16")
    with pytest.raises(ValueError, match="both operands are integer"):
        own = recipe.grad_input.grad_output
        replace(recipe, grad_weight=GradWeight(grad_output=own, unit="bf16"))
    with pytest.raises(ValueError, match=r"grad_weight.unit: got 'fp16'"):
        GradWeight(unit="fp16")  # type: ignore[arg-type]
