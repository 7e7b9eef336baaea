"""The named recipes say what their sources say, and train."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Recipe,
    inspect,
    plain_state_dict,
    quantize,
    recipes,
    summary,
)
from quantizers import OFF, FloatFormat, Quantizer, bf16, e4m3, fp16, int8


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
        ("int4", None, ValueError, r"unknown recipe 'int4'; did you mean 'int8' at 4 bits\? quant"),
        ("INT16", None, ValueError, r"did you mean 'int8' at 16 bits\?.*recipes\.int8\(16\)"),
        ("e4m3", None, ValueError, "that is a number format: Quantizer.format='e4m3'. is one of"),
        ("uint8", None, ValueError, "that is a number format: Quantizer.format='uint8'."),
        ("", None, ValueError, "unknown recipe ''; `qtrain recipes`, and .*, list all; any other"),
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
        (lambda: Recipe(name="x", activation=16), "activation: got 16"),  # type: ignore
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
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # torch rounds parts of sums to bf16
        assert (grads["bf16"] - grads["fp32"]).abs().max() < 2**-4 * grads["fp32"].abs().max()
        return
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


# Outputs kept in 16 bits --------------------------------------------------------------------------

NARROW = {fp16: torch.float16, bf16: torch.bfloat16}


def narrow(recipe: Recipe, fmt: FloatFormat) -> Recipe:
    return replace(recipe, activation=fmt, narrow=True)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2),
    )  # fmt: skip


@pytest.mark.parametrize("fmt", [None, e4m3, FloatFormat(5, 7), FloatFormat(5, 10, overflow="nan")])
def test_narrow_needs_a_format_that_torch_has_in_16_bits(fmt: Any) -> None:
    with pytest.raises(
        ValueError, match=r"narrow: activation is .*; set activation=quant.*\.fp16 or"
    ):
        Recipe(name="x", activation=fmt, narrow=True)
    with pytest.raises(ValueError, match=r"quantizers\.bf16"):
        replace(recipes.int8(), activation=fmt, narrow=True)
    assert Recipe(name="x", activation=fmt).narrow is False
    with pytest.raises(TypeError, match="narrow: got 1, need True or False"):
        Recipe(name="x", activation=fp16, narrow=1)  # type: ignore[arg-type]


def test_narrow_is_shown_kept_at_other_bits_and_compared() -> None:
    for fmt in NARROW:
        wide = replace(recipes.int8(), activation=fmt)
        recipe = narrow(recipes.int8(), fmt)
        assert recipe != wide and hash(recipe) == hash(narrow(recipes.int8(), fmt))
        assert str(recipe) == f"{wide} kept in 16 bits" and "16 bits" not in str(wide)
        model = quantize(nn.Linear(2, 2), recipe=recipe)
        assert f"output {fmt} kept in 16 bits" in str(summary(model))
        for other in (recipe.at(4), narrow(recipes.banner2018(), fmt).at(4)):
            assert other.narrow and other.activation == fmt
            assert other.forward.weight.format.bits == 4  # type: ignore[attr-defined]
        assert quantize(nn.Linear(2, 2), 5, recipe=recipe).product.recipe == recipe.at(5)
        assert not wide.at(4).narrow
        model = pickle.loads(pickle.dumps(quantize(nn.Linear(2, 2), recipe=recipe)))
        assert model(torch.ones(1, 2)).dtype == NARROW[fmt]


@pytest.mark.parametrize("fmt", NARROW, ids=str)
@pytest.mark.parametrize("name", ["int8", "banner2018", "fp16", "bf16"])
def test_narrow_outputs_are_the_rounded_ones_in_another_dtype(name: str, fmt: FloatFormat) -> None:
    recipe = narrow(recipes.get(name), fmt)
    x = normal(16, 1, 8, 8)
    for layer, values in (
        (nn.Conv2d(1, 8, 3), x),
        (nn.Linear(8, 3), x),
        (nn.Linear(8, 3), x[0, 0, 0]),
    ):
        outputs = []
        for own in (recipe, replace(recipe, narrow=False)):
            leaf = values.clone().requires_grad_()
            model = quantize(layer, recipe=own)
            output = model(leaf)
            output.float().square().sum().backward()
            outputs.append((output, leaf.grad, *(p.grad for p in model.parameters())))
        short, wide = outputs
        assert short[0].dtype == NARROW[fmt] and wide[0].dtype == torch.float32
        assert torch.equal(short[0].float(), wide[0])
        for a, b in zip(short[1:], wide[1:], strict=True):  # leaves stay fp32
            assert a is not None and b is not None and a.dtype == b.dtype == torch.float32
            # their gradient came through 16 bits
            assert F.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.999
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        model = quantize(nn.Linear(8, 3), recipe=recipe).to(dtype)
        assert model(normal(4, 8).to(dtype)).dtype == NARROW[fmt]
    with torch.autocast("cpu", torch.bfloat16):
        assert quantize(nn.Linear(8, 3), recipe=recipe)(normal(4, 8)).dtype == NARROW[fmt]


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_between_the_layers_of_a_narrow_model_there_are_16_bits(fmt: FloatFormat) -> None:
    model = quantize(small(), recipe=narrow(recipes.int8(), fmt), norm="range")
    values: dict[str, torch.dtype] = {}
    gradients: dict[str, torch.dtype] = {}

    def forward(module: nn.Module, args: Any, output: Tensor) -> None:
        values[type(module).__name__] = output.dtype

    def backward(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        gradients[type(module).__name__] = grad_output[0].dtype

    for module in model:  # type: ignore[union-attr]
        module.register_forward_hook(forward)
        module.register_full_backward_hook(backward)
    model(normal(4, 1, 8, 8).requires_grad_()).float().sum().backward()
    assert set(values.values()) == set(gradients.values()) == {NARROW[fmt]}
    assert {"QConv2d", "QBatchNorm2d", "ReLU", "QLinear"} <= set(values) == set(gradients)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert model[1].running_var.dtype == torch.float32  # type: ignore[index]


def test_a_narrow_fp16_output_overflows_to_infinity_as_the_rounded_one_does() -> None:
    layer = nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1e3)
    for recipe in (recipes.int8(), recipes.fp16()):
        short = quantize(layer, recipe=narrow(recipe, fp16))(torch.tensor([[100.0], [1.0]]))
        wide = quantize(layer, recipe=replace(recipe, activation=fp16))(
            torch.tensor([[100.0], [1.0]])
        )
        assert torch.equal(short.float(), wide) and short[0].isinf() and short[1].isfinite()


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_a_narrow_model_is_saved_inspected_and_copied_as_another(fmt: FloatFormat) -> None:
    recipe = narrow(recipes.int8(), fmt)
    wide = quantize(small(), recipe=replace(recipe, narrow=False), norm="range")
    short = quantize(small(), recipe=recipe, norm="range")
    x = normal(8, 1, 8, 8)
    short(x), wide(x)
    ours, theirs = short.state_dict(), wide.state_dict()
    assert {name: t.dtype for name, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    wide.load_state_dict(ours, strict=True)
    small().load_state_dict(plain_state_dict(short), strict=True)
    with torch.no_grad():
        assert torch.equal(short.eval()(x).float(), wide.eval()(x))
    short.train(), wide.train()
    reports = [
        inspect(model, x, targets=torch.zeros(8, dtype=torch.long), loss=F.cross_entropy)
        for model in (short, wide)
    ]
    rows = [{(row.layer, row.role): row for row in report.rows} for report in reports]
    assert rows[0].keys() == rows[1].keys() and {layer for layer, _ in rows[0]} == {"0", "3", "7"}
    for at, row in rows[0].items():
        assert row.nonfinite == 0
        # the same errors, but for the 16 bits of gradients; the copy for grad_weight is bf16, and
        # so exact where gradients are
        if at[1] != "grad_output (grad_weight)":
            assert row.sqnr_db == pytest.approx(rows[1][at].sqnr_db, abs=1.5), at
    after = short.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in ours.items() if "num_batches" in name)


@pytest.mark.parametrize("name", ["int8", "bf16"])
def test_a_narrow_model_learns(name: str) -> None:
    model = quantize(small(), recipe=narrow(recipes.get(name), bf16), norm="range")
    x = normal(64, 1, 8, 8)
    y = (x[:, 0, :, :4].mean((1, 2)) > x[:, 0, :, 4:].mean((1, 2))).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 < 0.5 < losses[0]
