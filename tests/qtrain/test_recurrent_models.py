"""Models with converted recurrent layers: state, copies, recipes, checkpoints, reports."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from qtrain import (
    Forward,
    GradInput,
    Recipe,
    cost,
    inspect,
    plain_state_dict,
    quantize,
    quantize_,
    recipes,
    set_recipe,
    summary,
)
from quantizers import Quantizer, int8, stochastic

_NOISY = Quantizer(format=int8, rounding=stochastic())
NOISY = Recipe(
    name="noisy",
    forward=Forward(input=_NOISY, weight=_NOISY),
    grad_input=GradInput(grad_output=_NOISY),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """An LSTM in both directions, a cell in a loop and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 8, proj_size=4, bidirectional=True)
        self.cell = nn.GRUCell(8, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found, hidden = [], None
        for step in self.lstm(x)[0]:
            hidden = self.cell(step, hidden)
            found.append(self.fc(hidden))
        return torch.stack(found)


LSTM = {f"lstm.{n}_l0{way}" for n in ("ih", "hh", "hr") for way in ("", "_reverse")}
PRODUCTS = {*LSTM, "cell.ih", "cell.hh", "fc"}
X = normal(4, 3, 6)


def results(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def recipes_in(model: nn.Module) -> dict[str, str]:
    return {m.name: m.recipe.name for m in model.modules() if hasattr(m, "noise_key")}  # type: ignore[union-attr, misc]


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def test_reports_name_every_product() -> None:
    model = quantize(Net())
    found = summary(model, X)
    assert found.conversion.converted == {"lstm": "LSTM", "cell": "GRUCell", "fc": "Linear"}
    assert found.left == {} and found.outside == {} and found.never_ran == []
    assert set(found.engines or {}) == PRODUCTS
    assert {row.layer for row in cost(model, X).rows} == PRODUCTS
    assert {row.layer for row in cost(Net(), X).rows} == PRODUCTS
    report = inspect(model, X, loss=lambda y: y.square().sum())
    assert {row.layer for row in report.rows} == PRODUCTS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)  # nothing is outside
    text = repr(model)
    assert "QLSTM(6, 8, proj_size=4, bidirectional=True; int8)" in text
    assert "QGRUCell(8, 5; int8)" in text


def test_a_weight_of_many_steps_is_stored_once() -> None:
    """By hand: of int8 inputs and weights; a scale in fp32 is 4 bytes, a zero point 1."""
    layer = quantize(nn.Sequential(nn.GRU(4, 4)))
    layer[0].register_forward_hook(lambda module, args, output: output[0])
    rows = {(r.layer, r.product): r for r in cost(layer, normal(6, 3, 4)).rows}
    weight, steps, each = 12 * 4 + 12 * 4, 6, 3 * 4 + 4 + 1
    assert rows["0.hh_l0", "grad_input"].stored_bytes == weight
    assert rows["0.hh_l0", "grad_weight"].stored_bytes == steps * each
    assert rows["0.hh_l0", "forward"].macs == steps * 3 * 12 * 4


def test_state_is_torchs_and_the_products() -> None:
    plain, model = Net(), quantize(Net(), recipe="banner2018")
    results(model)
    keys = set(model.state_dict())
    assert set(plain.state_dict()) < keys
    others = {key.rpartition(".")[0] for key in keys - set(plain.state_dict())}
    assert others == {*LSTM, "cell.ih", "cell.hh", "fc.product"}
    plain.load_state_dict(plain_state_dict(model), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert int(model.get_buffer("lstm.hh_l0.noise_count")) == 4, "a count a step"
    assert int(model.get_buffer("lstm.ih_l0.noise_count")) == 1


def test_copies_pickles_and_resumed_training_repeat() -> None:
    model = quantize(Net(), recipe=NOISY)
    results(model)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    resumed = quantize(Net(), recipe=NOISY, seed=5)
    resumed.load_state_dict(torch.load(saved))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), resumed]
    expected = results(model)
    assert all(same(results(twin), expected) for twin in twins)


def test_in_place_parameters_stay() -> None:
    model = Net()
    before = list(model.parameters())
    quantize_(model)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    lstm: Any = model.lstm
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))
    lstm.flatten_parameters()
    assert model.double()(X.double()).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in lstm._flat_weights)


def test_set_recipe_goes_to_another_and_to_full_precision_and_back() -> None:
    plain, model = Net(), quantize(Net())
    expected = results(quantize(Net(), recipe="fp8"))
    assert same(results(set_recipe(model, "fp8")), expected)
    assert same(results(set_recipe(model, "fp32")), results(plain)), "torch's own"
    assert recipes_in(set_recipe(model, "int8")) == {name: "int8" for name in PRODUCTS}
    assert not same(results(model), results(plain))


@pytest.mark.parametrize("place", ["quantize", "set_recipe"])
def test_overrides_reach_a_layer_or_one_of_its_products(place: str) -> None:
    def follow(**overrides: Any) -> dict[str, str]:
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        if place == "quantize":
            model = quantize(Net(), overrides=given)
        else:
            model = set_recipe(quantize(Net()), "int8", overrides=given)
        assert "override" in str(summary(model)) or None in given.values()
        results(model)
        return recipes_in(model)

    found = follow(lstm=4, cell__hh=None)
    assert {found[name] for name in LSTM} == {"int8 at 4 bits"}
    assert (found["cell.ih"], found["cell.hh"], found["fc"]) == ("int8", "fp32", "int8")
    found = follow(**{"lstm__hh_*": "bf16", "lstm": 4})
    assert found["lstm.hh_l0_reverse"] == "bf16" and found["lstm.ih_l0"] == "int8 at 4 bits"
    with pytest.raises(ValueError, match=r"\['lstm.hh_l0'\] decide nothing"):
        follow(lstm=4, lstm__hh_l0=8)
    with pytest.raises(ValueError, match=r"lstm\.hh_l7.*match no layer"):
        follow(lstm__hh_l7=8)


def test_an_override_of_a_product_of_a_layer_that_is_left_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"lstm\.hh_l0.*cannot be honoured.*left by an override"):
        quantize(Net(), overrides={"lstm.hh_l0": 8, "lstm": None})
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "fc": nn.Linear(4, 4)})
    found = quantize(model, overrides={"attention.scores": "bf16", "attention.context": None})
    assert recipes_in(found)["attention.scores"] == "bf16"
    assert recipes_in(found)["attention.context"] == "fp32"
    assert "(8, heads=2; int8, bf16, fp32)" in repr(found["attention"])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("recipe", [NOISY, recipes.banner2018()], ids=["noisy", "ranges"])
def test_a_recomputed_layer_repeats_every_step(recipe: Recipe, reentrant: bool) -> None:
    model = quantize(Net(), recipe=recipe)
    twin, x = copy.deepcopy(model), X.clone().requires_grad_()
    expected = results(model, x)
    twin.zero_grad()
    output = checkpoint(twin, x, use_reentrant=reentrant)
    output.square().sum().backward()
    assert torch.equal(output, expected[0])
    for a, b in zip((p.grad for p in twin.parameters()), expected[1:], strict=True):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert same(list(model.buffers()), list(twin.buffers()))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_autocast_gives_torchs_dtypes(kind: str) -> None:
    torch.manual_seed(0)
    plain = getattr(nn, kind)(6, 8)
    x = X[0] if "Cell" in kind else X
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            expected, found = (tree_leaves(m(given)) for m in (plain, quantize(plain)))
            assert [t.dtype for t in found] == [t.dtype for t in expected]


def test_outputs_that_are_kept_in_16_bits_pass_through_layers() -> None:
    recipe = Recipe(name="narrow", forward=Forward(input=_NOISY), activation="fp16", narrow=True)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 8, 2))
    output, _ = quantize(model, recipe=recipe)(X)
    output.square().sum().backward()
    assert bool(output.isfinite().all())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell])
def test_parametrized_weights_are_followed(kind: Any) -> None:
    torch.manual_seed(0)
    plain = kind(6, 8)
    name = "weight_hh" if kind is nn.GRUCell else "weight_hh_l0"
    weight_norm(plain, name)
    given = (X[0], normal(3, 8)) if kind is nn.GRUCell else (X,)
    model = quantize(plain, recipe="bf16")
    first, expected = (tree_leaves(m(*given))[0] for m in (model, plain))
    torch.testing.assert_close(first, expected, rtol=0.02, atol=0.02)
    first.square().sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(grad is not None and bool(grad.any()) for grad in grads.values())
    with torch.no_grad():
        model.get_parameter(f"parametrizations.{name}.original0").mul_(3.0)
    assert not torch.equal(tree_leaves(model(*given))[0], first)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell])
def test_reset_parameters_draws_as_torchs_and_leaves_what_is_learned(kind: Any) -> None:
    plain, x = kind(6, 8), X[0] if kind is nn.GRUCell else X
    model = quantize(plain, recipe="lsq")
    tree_leaves(model(x))[0].sum().backward()
    learned = {n: p.clone() for n, p in model.named_parameters() if "." in n}
    assert learned
    for one in (plain, model):
        torch.manual_seed(3)
        one.reset_parameters()
    for name, parameter in model.named_parameters():
        expected = learned[name] if "." in name else plain.get_parameter(name)
        assert torch.equal(parameter, expected)


def test_dropout_between_layers_is_torchs_draw() -> None:
    torch.manual_seed(0)
    plain = nn.GRU(6, 8, 3, dropout=0.5, batch_first=True)
    model = quantize(plain, recipe="bf16")
    found = []
    for one in (plain, model):
        torch.manual_seed(5)
        found.append(one(X)[0])
    torch.testing.assert_close(*found, rtol=0.03, atol=0.03)
    first, second = (model.eval()(X)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_torch_refuses_is_refused() -> None:
    model: Any = quantize(nn.ModuleDict({"rnn": nn.LSTM(6, 8), "cell": nn.GRUCell(6, 8)}))
    rnn, cell, h = model["rnn"], model["cell"], normal(1, 3, 8)
    for given, error, message in (
        ((normal(4, 3, 5),), ValueError, r"layer 'rnn.ih_l0': input has shape \(4, 3, 5\), need"),
        ((normal(2, 4, 3, 6),), ValueError, r"need \(L, N, in\)"),
        ((pack_sequence([normal(2, 5)]),), ValueError, r"need \(tokens, in\), in = 6"),
        ((X.long(),), TypeError, "input is torch.int64"),
        ((X[:0],), RuntimeError, "at least one step"),
        ((X, (h, h[:, :2])), RuntimeError, r"got \[1, 2, 8\]"),
        ((X[:, 0], (h, h)), RuntimeError, "the states need none"),
    ):
        with pytest.raises(error, match=message):
            rnn(*given)
    with pytest.raises(ValueError, match=r"layer 'cell.ih': input has shape \(4, 3, 6\), need"):
        cell(X)
    with pytest.raises(RuntimeError, match=r"layer 'cell.hh': the state has shapes .*need 1 of"):
        cell(X[0], h[0, :1])
    assert rnn(X[:, :0])[0].shape == (4, 0, 8), "an empty batch is none of them"


@pytest.mark.costly
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:The .grad attribute"
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell])
def test_compiled_models_have_the_bits_of_eager_ones(kind: Any) -> None:
    """The layer between the graphs, as torch's; a cell in the graph."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn, self.last = nn.Linear(6, 6), kind(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(tree_leaves(self.rnn(self.first(x)))[0])
            return y

    model = quantize(Three())
    twin, x = copy.deepcopy(model), X if kind is nn.LSTM else X[0]
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=kind is nn.GRUCell)
    for _ in range(2):
        assert same(results(compiled, x), results(model, x))
    assert same(list(twin.buffers()), list(model.buffers()))
