"""quantize and its companions: what is converted, what is left and why, what stays untouched."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import qtrain
from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Recipe,
    calibrate,
    inspect,
    plain_state_dict,
    quantize,
    quantize_,
    recipes,
    reseed,
    summary,
)
from qtrain.layer_state import LayerState
from qtrain.layers.convolution import QConv2d
from qtrain.layers.linear import QLinear
from quantizers import OFF, IntFormat, QTensor, Quantizer, ema, per_axis, per_channel


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.ModuleDict({
            "first": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            "second": nn.Linear(4, 4),
        })  # fmt: skip
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).mean((2, 3))
        out: Tensor = self.fc(self.body["second"](self.body["first"](x)))
        return out


def recipe_of(model: nn.Module, name: str) -> str | None:
    product = getattr(model.get_submodule(name), "product", None)
    return None if product is None else str(product.recipe.name)


NAMES = ["stem", "body.first.0", "body.first.2", "body.second", "fc"]
OVERRIDES: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "a layer": ({"fc": None}, {"fc": None}),
    "bits": ({"fc": 4}, {"fc": "int8 at 4 bits"}),
    "a recipe": ({"fc": recipes.bf16()}, {"fc": "bf16"}),
    "a container": ({"body": None}, {n: None for n in NAMES if n.startswith("body")}),
    "a nested container": (
        {"body.first": 4}, {"body.first.0": "int8 at 4 bits", "body.first.2": "int8 at 4 bits"}),
    "a star": ({"body.*": None}, {n: None for n in NAMES if n.startswith("body")}),
    "a star within": ({"*.2": None}, {"body.first.2": None}),
    "the first match wins": (
        {"body.second": 4, "body": None},
        {"body.second": "int8 at 4 bits", "body.first.0": None, "body.first.2": None}),
    "everything else": ({"fc": 4, "*": None}, {**dict.fromkeys(NAMES), "fc": "int8 at 4 bits"}),
    "a class of characters": ({"body.first.[02]": 3},
                              dict.fromkeys(("body.first.0", "body.first.2"), "int8 at 3 bits")),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides(name: str) -> None:
    overrides, changed = OVERRIDES[name]
    model = quantize(Net(), overrides=overrides)
    expected = {**dict.fromkeys(NAMES, "int8"), **changed}
    assert {n: recipe_of(model, n) for n in NAMES} == expected
    assert {n for n in NAMES if n in summary(model).left} == {
        n for n, own in expected.items() if own is None
    }


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "bits 0": ({"bits": 0}, ValueError, "bits: got 0"),
    "bits 1": ({"bits": 1}, ValueError, "bits: got 1"),
    "bits 17": ({"bits": 17}, ValueError, "bits: got 17"),
    "bits 7.5": ({"bits": 7.5}, TypeError, r"bits: got 7\.5"),
    "bits True": ({"bits": True}, TypeError, "bits: got True"),
    "bits text": ({"bits": "eight"}, TypeError, "bits: got 'eight'"),
    "bits for fp32": ({"bits": 8, "recipe": "fp32"}, ValueError, "'fp32' has no bits to set"),
    "recipe unknown": ({"recipe": "int88"}, ValueError, "unknown recipe 'int88'; did you mean"),
    "recipe a number": ({"recipe": 8}, TypeError, "recipe: got 8"),
    "norm unknown": ({"norm": "rang"}, ValueError, "rang"),
    "norm a number": ({"norm": 3}, TypeError, "norm: got 3"),
    "seed 1.5": ({"seed": 1.5}, TypeError, r"seed: got 1\.5"),
    "seed True": ({"seed": True}, TypeError, "seed: got True"),
    "later pattern": ({"overrides": {"*": 8, "fc": 4}}, ValueError, r"\['fc'\] decide nothing"),
    "bits of a norm": (
        {"norm": "range", "overrides": {"norm": 4}}, ValueError, "it is a norm, which the recipe"
    ),
    "a function for a recipe": (
        {"recipe": qtrain.recipes.int8}, TypeError, r"is a function: call it, int8\(\.\.\.\)"
    ),
    "no such recipe": ({"recipe": "fp80"}, ValueError, "any other is a Recipe"),
    "no such layer": ({"overrides": {"cf": 8}}, ValueError, r"\['cf'\] match no layer"),
    "one of two": ({"overrides": {"fc": 8, "stem.x": None}}, ValueError, r"\['stem.x'\] match no"),
    "override text": ({"overrides": {"fc": "int9"}}, ValueError, "unknown recipe 'int9'"),
    "override True": ({"overrides": {"fc": True}}, TypeError, r"overrides\['fc'\]: got True"),
    "override bits 1": ({"overrides": {"fc": 1}}, ValueError, "bits: got 1"),
    "override bits for fp32": (
        {"recipe": "fp32", "overrides": {"fc": 4}}, ValueError, "'fp32' has no bits"),
    "pattern a number": ({"overrides": {1: None}}, TypeError, "pattern 1 is not a string"),
    "all left": ({"overrides": {"*": None}}, ValueError, "nothing to convert"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_name_what_was_given_and_change_nothing(name: str) -> None:
    kwargs, error, message = BAD[name]
    model = Net()
    before = [(type(m), list(vars(m))) for m in model.modules()]
    with pytest.raises(error, match=message):
        quantize_(model, **kwargs)
    assert [(type(m), list(vars(m))) for m in model.modules()] == before
    assert not any(isinstance(m, LayerState) for m in model.modules())


def test_an_error_late_in_the_model_leaves_its_start_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 1))
    bad = replace(recipes.int8(), name="bad", forward=Forward(
        weight=Quantizer(format=IntFormat(8), granularity=per_axis(3), range=ema())))  # fmt: skip
    with pytest.raises(ValueError, match=r"layer '0'.*axis 3"):
        quantize_(model, recipe=bad)
    assert type(model[0]) is nn.Linear and type(model[1]) is nn.Conv2d


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "nothing to convert"),
        (nn.Sequential(), "nothing to convert"),
        (nn.Embedding(4, 4), r"nothing to convert.*(?s:.)*Embedding: a lookup"),
        (nn.Sequential(nn.BatchNorm1d(4)), r"nothing to convert(?s:.)*norms are left unless asked"),
        (nn.LazyLinear(4), "LazyLinear has no sizes yet; run one batch"),
    ],
    ids=["activation", "empty", "lookup", "norm", "lazy"],
)
def test_models_with_nothing_to_convert(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(model)


def test_what_is_no_model_or_converted_already_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model: got <built-in .*>, need a torch\.nn\.Mod"):
        quantize(torch.relu)  # type: ignore[arg-type]
    converted = quantize(Net())
    for again in (converted, nn.Sequential(converted), converted.fc):
        with pytest.raises(ValueError, match="quantized already"):
            quantize(again)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 4), "lookup"),
        (nn.EmbeddingBag(4, 4), "lookup"),
        (nn.Bilinear(4, 4, 4), "no conversion for this type"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_holds_a_product_and_is_not_converted_is_named(layer: nn.Module, reason: str) -> None:
    model = quantize(nn.ModuleDict({"odd": layer, "fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}))
    assert set(summary(model).left) == {"odd", "norm"} and type(model["odd"]) is type(layer)
    assert summary(model).left["odd"].startswith(f"{type(layer).__name__}: ")
    assert reason in summary(model).left["odd"]


class Named(nn.Linear):
    """Adds a method; its product is torch's."""

    def double(self) -> Any:
        return super().double()

    def tag(self) -> str:
        return "mine"


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class Scaled(nn.Linear):
    def __call__(self, input: Tensor) -> Any:
        return 2 * super().__call__(input)


def test_a_simple_subclass_is_converted_and_keeps_its_class() -> None:
    model = nn.Sequential(Named(4, 3))
    converted = quantize(model)
    assert isinstance(converted[0], Named) and isinstance(converted[0], QLinear)
    assert converted[0].tag() == "mine" and "QNamed(" in repr(converted)
    x = normal(2, 4)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model[0].state_dict())
    assert torch.equal(converted(x), quantize(plain)(x))
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(other[0]) is type(converted[0])
        assert torch.equal(other.eval()(x), converted.eval()(x))


@pytest.mark.parametrize("layer", [Standardised(3, 4, 3), Scaled(3, 4)], ids=["conv", "linear"])
def test_a_subclass_with_its_own_forward_is_named_as_left(layer: nn.Module) -> None:
    converted = quantize(nn.Sequential(layer, nn.Linear(4, 4)))
    assert type(converted[0]) is type(layer)
    assert "with its own" in summary(converted).left["0"]


def test_a_forward_replaced_on_the_object_is_named_as_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    assert "replaced on the object" in summary(quantize(model)).left["0"]


def test_the_original_is_untouched_and_in_place_keeps_parameters() -> None:
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    converted = quantize(model)
    assert type(model.fc) is nn.Linear and not hasattr(model.fc, "product")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not set(map(id, model.parameters())) & set(map(id, converted.parameters()))
    parameters = dict(model.named_parameters())
    assert quantize_(model) is model and type(model.fc) is QLinear
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert dict(model.named_parameters()).keys() == parameters.keys()


def test_a_layer_can_be_the_root() -> None:
    model = nn.Conv2d(3, 4, 3)
    assert type(quantize(model)) is QConv2d and type(model) is nn.Conv2d
    assert type(quantize_(model)) is QConv2d and type(model) is QConv2d
    assert summary(model).converted == {"(model)": "Conv2d"}
    with pytest.raises(ValueError, match=r"layer '\(model\)'|layer ''"):
        model(torch.ones(3))


def test_modes_frozen_parameters_and_hooks_are_kept() -> None:
    model = Net()
    model.fc.eval()
    model.stem.weight.requires_grad_(False)
    seen: list[str] = []
    model.fc.register_forward_hook(lambda m, a, o: seen.append("fc"))
    model.register_forward_pre_hook(lambda m, a: seen.append("net"))
    converted = quantize(model)
    converted(normal(2, 3, 5, 5)).sum().backward()
    assert seen == ["net", "fc"]
    assert not converted.fc.training and not converted.fc.product.training
    assert converted.stem.training and converted.stem.product.training
    assert converted.stem.weight.grad is None and converted.fc.weight.grad is not None


def test_a_shared_module_is_converted_once_and_its_state_travels() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x))
            return out

    model = Shared()
    converted = quantize(model)
    assert converted.a is converted.b and summary(converted).converted == {"a": "Linear"}
    converted(normal(2, 4)).sum().backward()
    assert int(converted.a.product.noise_count) == 2
    assert model.load_state_dict(plain_state_dict(converted)) is not None
    converted.load_state_dict(model.state_dict())
    assert plain_state_dict(converted).keys() == model.state_dict().keys()


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    converted = quantize(model)
    assert converted[1].weight is converted[0].weight
    converted(normal(2, 4)).sum().backward()
    assert len(list(converted.parameters())) == 3


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    custom = Named(4, 4)
    parametrize.register_parametrization(custom, "weight", Doubled())
    return {
        "weight_norm": parametrizations.weight_norm(nn.Linear(4, 4)),
        "spectral_norm": parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
        "orthogonal": parametrizations.orthogonal(nn.Linear(4, 4)),
        "custom on a subclass": custom,
    }


# spectral_norm and orthogonal multiply matrices of their own, which the first forward names
@pytest.mark.filterwarnings("ignore:qtrain. outside the recipe")
@pytest.mark.parametrize("name", parametrized())
def test_parametrized_weights(name: str) -> None:
    layer: Any = parametrized()[name]
    model = nn.Sequential(layer)
    converted = quantize(model, recipe=replace(recipes.int8(), grad_input=GradInput()))
    x = normal(3, 4) if isinstance(layer, nn.Linear) else normal(3, 4, 2, 2)
    layer.eval()
    converted.eval()  # spectral_norm then iterates no more
    plain: Any = type(layer).__bases__[0](4, 4, *([1] if x.dim() == 4 else []))
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    expected = quantize(plain, recipe=converted[0].product.recipe).eval()
    assert torch.equal(converted(x), expected(x))

    converted(x).square().sum().backward()
    layer(x).square().sum().backward()
    for (key, own), (_, other) in zip(
        converted[0].named_parameters(), layer.named_parameters(), strict=True
    ):
        assert own.grad is not None, key
        assert (own.grad - other.grad).norm() <= 0.1 * other.grad.norm() + 1e-3, key  # 8 bits

    twin = copy.deepcopy(converted)
    assert torch.equal(twin(x), converted(x))
    assert plain_state_dict(converted).keys() == model.state_dict().keys()
    model.load_state_dict(plain_state_dict(converted))
    converted.load_state_dict(model.state_dict())
    assert len(inspect(converted, x).rows) == 3
    assert len(repr(converted).splitlines()) == 3

    parametrize.remove_parametrizations(converted[0], "weight")
    assert torch.equal(converted(x), expected(x))
    assert isinstance(converted[0].weight, nn.Parameter)


def test_a_parametrization_may_come_after_conversion() -> None:
    converted: Any = quantize(nn.Linear(4, 4))
    weight = converted.weight.detach().clone()
    parametrize.register_parametrization(converted, "weight", Doubled())
    x = normal(2, 4)
    plain = nn.Linear(4, 4)
    with torch.no_grad():
        plain.weight.copy_(2 * weight)
        plain.bias.copy_(converted.bias)
    assert torch.equal(converted(x), quantize(plain)(x))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_whole_model_pickles_before_and_after_its_first_forward(before: bool) -> None:
    torch.manual_seed(0)
    for model, inputs in (
        (Net(), (normal(2, 3, 5, 5),)),
        (nn.Transformer(8, 2, 1, 1, 8), (normal(3, 2, 8), normal(2, 2, 8))),
    ):
        converted = quantize(model, norm="range").eval()
        if not before:
            converted(*inputs)
        file = io.BytesIO()
        torch.save(converted, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(loaded(*inputs), converted(*inputs))
        assert torch.equal(copy.deepcopy(converted)(*inputs), converted(*inputs))


def test_state_dicts_load_strictly_both_ways() -> None:
    model = Net()
    converted = quantize(model, recipe="banner2018")
    for seed in range(2):
        converted(normal(2, 3, 5, 5, seed=seed))
    state = copy.deepcopy(converted.state_dict())
    fresh = quantize(Net(), recipe="banner2018")
    fresh.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())
    assert int(fresh.fc.product.noise_count) == 2
    model.load_state_dict(plain_state_dict(converted))
    fresh.load_state_dict(Net().state_dict())
    assert int(fresh.fc.product.noise_count) == 2  # what is not there keeps its value
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.weight"):
        fresh.load_state_dict({k: v for k, v in Net().state_dict().items() if k != "fc.weight"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_ranges_keep_their_dtype_when_the_model_changes_its_own(dtype: torch.dtype) -> None:
    model = quantize(Net())
    model(normal(2, 3, 5, 5))
    before = copy.deepcopy(model.state_dict())
    model.to(dtype)
    for key, value in model.state_dict().items():
        if ".product." in key:
            assert value.dtype == before[key].dtype and torch.equal(value, before[key])
        elif key != "norm.num_batches_tracked":
            assert value.dtype == dtype
    assert model(normal(2, 3, 5, 5).to(dtype)).dtype == dtype


def test_an_operand_that_is_the_forwards_keeps_no_state_of_its_own() -> None:
    names = [name for name, _ in quantize(Net()).fc.product.named_buffers()]
    assert [n for n in names if not n.startswith("noise")] == [
        f"forward_input_{n}" for n in ("low", "high", "share", "steps")
    ]


def test_reseed_changes_noise_and_nothing_else() -> None:
    model = quantize(Net())
    twin = copy.deepcopy(model)
    x = normal(2, 3, 5, 5)

    def gradient(m: Any) -> Tensor:
        m.zero_grad()
        m(x).square().sum().backward()
        return m.stem.weight.grad.clone()

    first = gradient(model)
    assert torch.equal(first, gradient(twin))
    assert reseed(twin, 7) is twin
    state, other = model.state_dict(), twin.state_dict()
    assert {k for k in state if not torch.equal(state[k], other[k])} == {
        k for k in state if k.endswith("noise_key")
    }
    assert not torch.equal(gradient(model), gradient(twin))
    keys = [int(v) for k, v in other.items() if k.endswith("noise_key")]
    assert len(set(keys)) == len(keys) == 5
    for bad in (1.5, True, None):
        with pytest.raises(TypeError, match="seed: got"):
            reseed(twin, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no quantized layer"):
        reseed(Net(), 0)


def test_calibrate_fills_ranges_and_changes_nothing_else() -> None:
    model = quantize(Net(), recipe="banner2018")
    model.fc.eval()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    rng = torch.get_rng_state()
    batches = [normal(4, 3, 5, 5, seed=i) for i in range(3)]
    assert calibrate(model, [batches[0], (batches[1], "target"), [batches[2]]]) is model
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.split("_")[-1] in ("low", "high", "share", "steps") for k in changed)
    assert {"stem.product.forward_input_high", "norm.state.norm_input_high"} <= changed
    assert int(after["fc.product.forward_input_steps"]) == 3
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "stem.weight")

    model.eval()
    x = normal(6, 3, 5, 5, seed=9) * 2
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.equal(alone, model(x))


def test_calibrate_refuses_no_batch_and_restores_after_an_error() -> None:
    model = quantize(Net())
    with pytest.raises(ValueError, match="got no batch"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="no quantized layer"):
        calibrate(Net(), [normal(2, 3, 5, 5)])
    with pytest.raises(ValueError, match="layer 'stem'"):
        calibrate(model, [normal(2, 5)])
    assert model.training and model.fc.product.training
    assert int(model.stem.product.noise_count) == 0


class Remembering:
    """A user's method: rounds to a step that follows the tensor's mean magnitude, and scales its
    gradient; nothing of it lives in the package."""

    def init_state(self, shape: tuple[int | None, ...]) -> dict[str, Tensor]:
        return {"step": torch.zeros(())}

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> QTensor:
        if training:
            now = x.detach().float().abs().mean() / 16
            state["step"].copy_(torch.where(state["step"] == 0, now, state["step"].lerp(now, 0.1)))
        return QTensor(torch.round(x.float() / state["step"]), state["step"].clone())

    def backward(self, grad: Tensor, x: Tensor, state: Any) -> Tensor:
        return 0.5 * grad

    def __repr__(self) -> str:
        return "remembering"


SLOTS = {
    "forward_input": Recipe(name="u", forward=Forward(input=Remembering())),
    "forward_weight": Recipe(name="u", forward=Forward(weight=Remembering())),
    "grad_input_grad_output": Recipe(name="u", grad_input=GradInput(grad_output=Remembering())),
    "grad_input_weight": Recipe(name="u", grad_input=GradInput(weight=Remembering())),
    "grad_weight_grad_output": Recipe(name="u", grad_weight=GradWeight(grad_output=Remembering())),
    "grad_weight_input": Recipe(name="u", grad_weight=GradWeight(input=Remembering())),
}


def one(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 4)), normal(5, 6)
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(6, 4, 3, groups=2)), normal(2, 6, 5, 5)
    return nn.Sequential(nn.ConvTranspose2d(6, 4, 3)), normal(2, 6, 3, 3)


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
@pytest.mark.parametrize("slot", SLOTS)
def test_a_users_quantizer_with_state_and_backward_works_in_every_slot(
    slot: str, kind: str
) -> None:
    plain, x = one(kind)
    model: Any = quantize(plain, recipe=SLOTS[slot])
    x.requires_grad_()

    def grads(m: Any) -> list[Tensor]:
        m.zero_grad()
        x.grad = None
        output = m(x)
        output.square().sum().backward()
        assert x.grad is not None
        return [output.detach(), x.grad, m[0].weight.grad]

    exact, found = grads(plain), grads(model)
    half = {"forward_input": 1, "forward_weight": 2}.get(slot)
    for index, (a, b) in enumerate(zip(exact, found, strict=True)):
        a = a * (0.5 if index == half else 1)
        assert (a - b).norm() < 0.1 * a.norm()
    assert any(not torch.equal(a, b) for a, b in zip(exact, found, strict=True))

    # state: in the state_dict, restored, frozen in evaluation
    key = f"0.product.{slot}_step"
    state = copy.deepcopy(model.state_dict())
    assert key in state and float(state[key]) > 0
    other: Any = quantize(plain, recipe=SLOTS[slot])
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(other), strict=True))
    model.eval()
    frozen = model.state_dict()[key].clone()
    model(100 * x.detach())
    assert torch.equal(model.state_dict()[key], frozen)
    # report and printing
    roles = {row.role for row in inspect(model, x, loss=lambda y: y.square().sum()).rows}
    assert {"output", "grad_input", "grad_weight"} <= roles
    assert "remembering" in str(summary(model)) and "remembering" in repr(model[0].product)


def test_a_quantizer_that_returns_no_qtensor_is_refused() -> None:
    class Bare(Remembering):
        def __call__(self, x: Tensor, **kwargs: Any) -> Any:
            return x

    model = quantize(nn.Linear(3, 2), recipe=Recipe(name="u", forward=Forward(input=Bare())))
    with pytest.raises(TypeError, match="input of forward: the quantizer returned Tensor, need a"):
        model(normal(2, 3))
    with pytest.raises(TypeError, match=r"forward\.input: got 8, need a quantizer"):
        Forward(input=8)  # type: ignore[arg-type]


def test_printing_is_one_line_a_layer() -> None:
    lines = repr(quantize(Net(), norm="range", overrides={"body.second": None})).splitlines()
    plain = repr(Net()).splitlines()
    assert len(lines) == len(plain)
    (line,) = (x for x in lines if "(fc)" in x)
    assert line.strip() == "(fc): QLinear(in_features=4, out_features=2, bias=True; int8)"


def test_conversion_draws_nothing() -> None:
    torch.manual_seed(0)
    model = Net()
    before = torch.get_rng_state()
    quantize(model, norm="range")
    assert torch.equal(torch.get_rng_state(), before)


def test_off_is_a_value() -> None:
    assert Recipe(name="x").products_off and recipes.fp32().forward.input == OFF
    model = quantize(nn.Sequential(nn.Linear(2, 2)), recipe=qtrain.recipes.fp32())
    assert "; fp32)" in repr(model) and "fp32: off" in str(summary(model))


def test_an_override_that_only_meets_layers_left_anyway_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"overrides\['1'\] cannot be honoured: 1: .*norm="):
        quantize(model, overrides={"1": 8})
    with pytest.raises(ValueError, match=r"overrides\['2'\] cannot be honoured"):
        quantize(model, overrides={"2": "int8"})
    with pytest.raises(ValueError, match=r"overrides\['1'\] cannot be honoured: 1: it is a norm"):
        quantize(model, overrides={"1": 4}, norm="l1")
    quantize(model, overrides={"*": 4}, norm="l1")
    quantize(model, overrides={"2": None})


def test_the_summary_names_what_overrides_did_and_every_norm_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    text = str(summary(quantize(model, overrides={"2": 4})))
    assert "override   2: int8 at 4 bits" in text and "norms are left unless asked" in text


def test_a_norm_that_is_torchs_own_is_said_to_be() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert "torch's own" in quantized_left(model, "l2") and "unless asked" in quantized_left(model)


def quantized_left(model: nn.Module, norm: str | None = None) -> str:
    return summary(quantize(model, norm=norm)).left["1"]


class Fails(nn.Module):
    """A model whose second forward fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.layer, self.error, self.calls = nn.Linear(5, 2), error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.layer(x)
        if self.calls == 2:
            raise self.error
        return y


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_a_calibration_that_fails_keeps_the_ranges_it_had(error: BaseException) -> None:
    model = quantize(Fails(error))
    calibrate(model, [normal(3, 5)])
    before = copy.deepcopy(model.state_dict())
    model.calls = 0
    with pytest.raises(type(error)):
        calibrate(model, [normal(3, 5, seed=1) * 9, normal(3, 5)])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.training
    with pytest.raises(ValueError, match="empty tuple"):
        calibrate(model, [normal(3, 5, seed=2) * 9, ()])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def per_group() -> Recipe:
    weight = Quantizer(format=IntFormat(8), granularity=per_axis(0))
    return Recipe(name="mine", forward=Forward(weight=weight))


def test_a_scale_per_group_of_a_weight_without_groups_warns() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"per axis 0 .* and 0, 1 .*per_channel\(\)") as caught:
        quantize(model, recipe=per_group())
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="one group"):
        weight = Quantizer(format=IntFormat(8), granularity=per_axis(-3))
        quantize(model, recipe=Recipe(name="x", grad_input=GradInput(weight=weight)))


@pytest.mark.parametrize("axes", [(0, 1), (1,)])
def test_other_scales_of_a_weight_do_not_warn(axes: tuple[int, ...]) -> None:
    weight = Quantizer(format=IntFormat(8), granularity=per_axis(*axes))
    quantize(
        nn.Sequential(nn.Linear(3, 4)), recipe=Recipe(name="x", forward=Forward(weight=weight))
    )
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))  # one each, as asked
    quantize(grouped, recipe=per_group())


def test_per_channel_is_one_scale_for_each_output_channel() -> None:
    weight = Quantizer(format=IntFormat(8), granularity=per_channel())
    model = quantize(
        nn.Sequential(nn.Linear(3, 4)), recipe=Recipe(name="x", forward=Forward(weight=weight))
    )
    layer: Any = model[0]
    rows = layer.weight.detach().abs().amax(1) / 127
    assert torch.equal(weight(layer.weight.detach()[None]).scale.flatten(), rows)
    assert recipes.int8().forward.weight == weight


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor(-1), "-1"),
        (torch.tensor(1.5), "torch.float32"),
        (torch.tensor([1]), r"shape \(1,\)"),
    ],
    ids=str,
)
def test_a_noise_count_that_is_none_is_refused_and_changes_nothing(
    value: Tensor, text: str
) -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 2)))
    state = {**model.state_dict(), "0.product.noise_count": value}
    with pytest.raises(ValueError, match=rf"0\.product\.noise_count: got .*{text}"):
        model.load_state_dict(state)
    assert int(model.state_dict()["0.product.noise_count"]) == 0


@pytest.mark.parametrize("norm", [None, "l1"])
def test_function_transforms_and_traces_are_refused_in_our_words(norm: str | None) -> None:
    model = quantize(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), norm=norm)
    name = "0" if norm else "1"
    x = normal(4, 3)
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())

    def loss(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (x,)).sum()

    with pytest.raises(ValueError, match=rf"layer '{name}': .*torch\.func"):
        torch.func.grad(loss)(parameters)
    with pytest.raises(ValueError, match=rf"layer '{name}': .*torch\.func"):
        torch.func.vmap(model)(x[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=rf"layer '{name}': .*torch\.jit\.trace"):
            torch.jit.trace(model, x)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_recipes_name_in_the_place_of_bits_is_answered_with_its_keyword() -> None:
    for convert in (quantize, quantize_):
        with pytest.raises(TypeError, match=r"a recipe's name is recipe='nvfp4'"):
            convert(nn.Linear(4, 4), "nvfp4")  # type: ignore[arg-type]
