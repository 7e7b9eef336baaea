"""Arguments of the wrong kind: one TypeError or ValueError that names what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qtrain import (
    CorrectedSteps,
    Forward,
    ScaledDotProductAttention,
    calibrate,
    inspect,
    plain_state_dict,
    quantize,
    quantize_,
    recipes,
    reseed,
    summary,
)
from quantizers import IntFormat, Quantizer, ema, int8, per_axis

CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "quantize": (lambda x: quantize(x), "model: got"),
    "quantize_": (lambda x: quantize_(x), "model: got"),
    "inspect": (lambda x: inspect(x, torch.ones(1)), "model: got"),
    "summary": (lambda x: summary(x), "model: got"),
    "calibrate": (lambda x: calibrate(x, []), "model: got"),
    "reseed": (lambda x: reseed(x, 0), "model: got"),
    "plain_state_dict": (lambda x: plain_state_dict(x), "model: got"),
    "overrides": (lambda x: quantize(nn.Linear(2, 2), overrides=x or "0"), "overrides: got"),
    "recipe": (lambda x: quantize(nn.Linear(2, 2), recipe=x), "recipe: got"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [None, 3, ["0"]], ids=repr)
def test_the_wrong_kind_is_named(name: str, value: Any) -> None:
    call, text = CALLS[name]
    with pytest.raises(TypeError, match=text):
        call(value)


@pytest.mark.parametrize("value", [None, [1.0]], ids=repr)
def test_a_layer_says_what_it_was_given(value: Any) -> None:
    model = quantize(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(TypeError, match=r"layer '0.0': input is"):
        model[0][0].product(None, value, model[0][0].weight)


def test_an_unknown_recipe_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        recipes.get(["int8"])  # type: ignore[arg-type]


def test_a_model_that_cannot_be_copied_says_what_to_do() -> None:
    with pytest.warns(FutureWarning):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 2)))
    model(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"use quantize_\(model\)"):
        quantize(model)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = quantize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def corrected(norms: Any) -> CorrectedSteps:
    model, optimizer = trained()
    return CorrectedSteps(optimizer, model, norms)


X, CLASSES = torch.linspace(-1, 1, 12).view(4, 3), torch.tensor([0, 1, 1, 0])

#: each was silent, or an error of Python's or torch's own from somewhere below
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "signed": (lambda: IntFormat(8, signed="unsigned"), TypeError, "signed: got 'unsigned'"),
    "range class": (lambda: Quantizer(format=int8, range=float), TypeError, "range: got .*float"),
    "range of no argument": (
        lambda: Quantizer(format=int8, range=lambda: None), TypeError, "range: got .*called so",
    ),
    "averaged average": (lambda: ema(ema()), TypeError, "rule: got Ema.*without memory"),
    "no norms": (lambda: corrected({}), ValueError, "norms: got none"),
    "norms of numbers": (lambda: corrected({"0.weight": 1.0}), TypeError, r"norms\['0.weight'\]"),
    "overrides": (lambda: quantize(nn.Linear(2, 2), overrides=0), TypeError, "overrides: got 0"),
    "inputs": (lambda: inspect(trained()[0], None), TypeError, "inputs: got None"),
    "targets": (
        lambda: inspect(trained()[0], X, CLASSES + 1), ValueError, "targets: .*1 to 2, need 0 to",
    ),
    "targets' shape": (
        lambda: inspect(trained()[0], X, CLASSES[:3]), ValueError, r"targets: got shape \(3,\)",
    ),
    "loss class": (
        lambda: inspect(trained()[0], X, CLASSES, nn.CrossEntropyLoss), TypeError,
        "loss: got .*is a class",
    ),
    "x": (lambda: Quantizer(format=int8)("x"), TypeError, "x: got 'x', need a tensor"),
    "key": (lambda: Quantizer(format=int8)(X, key=1), TypeError, "key: got 1, need a 0-d int64"),
    "state": (
        lambda: Quantizer(format=int8, range=ema())(X, state={}), ValueError,
        r"state: got \[\].*low, high, share, steps",
    ),
    "state of another shape": (
        lambda: Quantizer(format=int8, range=ema(), granularity=per_axis(0))(
            X, state=ema().init_state((2, 1))
        ),
        ValueError, r"state: got .*\(2, 1\), need \(4, 1\)",
    ),
    "training": (lambda: Quantizer(format=int8)(X, training=1), TypeError, "training: got 1"),
    "bits": (lambda: quantize(nn.Linear(2, 2), bits=torch.tensor(8)), TypeError, "bits: got a ten"),
    "name of a network": (
        lambda: quantize("resnet18"), TypeError, r"'resnet18'.*qtrain.models.get\('resnet18'",
    ),
    "class of a network": (lambda: quantize(nn.Linear), TypeError, "this is a class"),
    "batches": (lambda: calibrate(trained()[0], X), TypeError, "batches: got a tensor"),
    "a layer's input": (lambda: trained()[0](1.5), TypeError, "layer '0': input is float"),
    "a long integer": (lambda: quantize(nn.Linear(2, 2), bits=10**5000), ValueError, "16610 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_cannot_be_honoured_is_named(name: str) -> None:
    call, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        call()


def test_classes_that_the_default_loss_leaves_out_stay_so() -> None:
    model, _ = trained()
    report = inspect(model, X, torch.tensor([0, -100, 1, 1]))
    assert any(row.role == "grad_input" for row in report.rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_key", torch.tensor(1.5)), ("forward_input_low", torch.ones(1, 1, dtype=torch.int64))],
)
def test_an_entry_of_another_kind_is_not_loaded(name: str, value: torch.Tensor) -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4)))
    state = {**model.state_dict(), f"0.product.{name}": value}
    with pytest.raises(ValueError, match=rf"0\.product\.{name}: got {value.dtype}, need a tensor"):
        model.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_of_a_convolution_is_named() -> None:
    model = quantize(nn.Sequential(nn.Conv2d(2, 4, 3)))
    with pytest.raises(TypeError, match="layer '0': input is a nested tensor; pad it"):
        model(torch.nested.nested_tensor([torch.ones(2, 5, 5)]))


def test_a_bias_or_mask_of_another_kind_is_named() -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4)))
    model[0].bias = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"layer '0': bias is torch\.complex64"):
        model(torch.ones(2, 4))
    attention, x = quantize(ScaledDotProductAttention()), torch.ones(1, 1, 4, 4)
    with pytest.raises(TypeError, match=r"attn_mask: got torch\.int64, need bool"):
        attention(x, x, x, torch.ones(4, 4, dtype=torch.int64))


def test_a_module_whose_forward_is_not_a_quantizers_is_none() -> None:
    with pytest.raises(TypeError, match=r"forward\.input: got .*need a quantizer"):
        Forward(input=nn.Linear(2, 2))  # type: ignore[arg-type]
