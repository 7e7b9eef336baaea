"""Converted recurrent layers and cells: torch's numbers, and those of their products alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layer_oracle import NEAR
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence
from torch.utils._pytree import tree_leaves

from qtrain import Forward, GradInput, GradWeight, Recipe, quantize, recipes
from qtrain.products import call
from quantizers import Quantizer, int8, per_axis, per_channel, stochastic

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

_ROWS = Quantizer(format=int8, granularity=per_axis(0))
#: a scale for each row: of a token, or of a sequence at a step
ROWS = Recipe(
    name="rows",
    forward=Forward(input=_ROWS, weight=Quantizer(format=int8, granularity=per_channel())),
    grad_input=GradInput(grad_output=_ROWS),
)
_NOISY = Quantizer(format=int8, rounding=stochastic())
NOISY = Recipe(
    name="noisy",
    forward=Forward(input=_NOISY, weight=_NOISY),
    grad_input=GradInput(grad_output=_NOISY),
    grad_weight=GradWeight(grad_output=_NOISY),
)
KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    "lstm": nn.LSTM,
    "projected": lambda *a, **k: nn.LSTM(*a, proj_size=3, **k),
    "gru": nn.GRU,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "deep": {"num_layers": 2, "bias": False},
    "both ways": {"bidirectional": True},
    "batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
}
CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {
    "tanh": nn.RNNCell,
    "relu": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}
LENGTHS = {"packed": (4, 3, 3, 1), "packed out of order": (3, 1, 4, 3)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states(layer: Any, batch: Sequence[int]) -> list[Tensor]:
    """Initial states of a layer."""
    count, lstm = layer.num_layers * (1 + layer.bidirectional), layer.mode == "LSTM"
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 1 + lstm]
    return [normal(count, *batch, size, seed=9 + i) for i, size in enumerate(sizes)]


def step(model: Any, leaves: Sequence[Tensor], begin: Sequence[Tensor], form: str) -> list[Tensor]:
    """Outputs and last states, then all gradients: of inputs, states, parameters."""
    own = [x.clone().requires_grad_() for x in leaves]
    hx = [x.clone().requires_grad_() for x in begin]
    x: Any = own[0] if len(own) == 1 else pack_sequence(own, enforce_sorted=form == "packed")
    model.zero_grad()
    given = (x,) if not hx else (x, tuple(hx) if len(hx) == 2 else hx[0])
    found = model(*given)
    outputs = [t for t in tree_leaves(tuple(found)) if isinstance(t, Tensor) and t.requires_grad]
    if not isinstance(x, Tensor):
        assert isinstance(found[0], PackedSequence)
        assert all(
            a is None if b is None else torch.equal(a, b)
            for a, b in zip(found[0][1:], x[1:], strict=True)
        )
    weighted(outputs).backward()
    grads = [t.grad for t in (*own, *hx, *model.parameters())]
    return [t.detach() for t in outputs] + [g for g in grads if g is not None]


def weighted(tensors: Sequence[Tensor]) -> Tensor:
    """A loss in which no two elements count alike."""
    parts = [(t * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in tensors]
    return torch.stack(parts).sum()


def close(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_torchs(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = KINDS[kind](4, 5, **options)
    near, off = quantize(plain, recipe=NEAR), quantize(plain, recipe="fp32")
    for form, shape in {"batch": (4, 3, 4), "single": (4, 4), **LENGTHS}.items():
        batch = {"batch": (3,), "single": ()}.get(form, (4,))
        if form in LENGTHS:
            leaves = [normal(length, 4, seed=i) for i, length in enumerate(shape)]
        else:
            leaves = [normal(*shape)]
            if plain.batch_first and form == "batch":
                leaves = [leaves[0].transpose(0, 1).contiguous()]
        for begin in ([], states(plain, batch)):
            expected = step(plain, leaves, begin, form)
            close(expected, step(near, leaves, begin, form))
        assert same(expected, step(off, leaves, begin, form)), "off is torch's own"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", CELLS)
def test_every_cell_is_torchs(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    plain = CELLS[kind](4, 5, bias=bias)
    near, off = quantize(plain, recipe=NEAR), quantize(plain, recipe="fp32")
    for batch in ((3,), ()):
        x, hx = normal(*batch, 4), [normal(*batch, 5, seed=i) for i in range(1 + (kind == "lstm"))]
        for begin in ([], hx):
            expected = cell_step(plain, x, begin)
            close(expected, cell_step(near, x, begin))
            assert same(expected, cell_step(off, x, begin))


def cell_step(model: Any, x: Tensor, begin: Sequence[Tensor]) -> list[Tensor]:
    x, hx = x.clone().requires_grad_(), [h.clone().requires_grad_() for h in begin]
    model.zero_grad()
    found = model(*([x] if not hx else [x, tuple(hx) if len(hx) == 2 else hx[0]]))
    outputs = list(found) if isinstance(found, tuple) else [found]
    weighted(outputs).backward()
    grads = [t.grad for t in (x, *hx, *model.parameters())]
    return [t.detach() for t in outputs] + [g for g in grads if g is not None]


def linears(layer: Any, recipe: Recipe) -> dict[str, Any]:
    """A quantized linear layer for each product of a recurrent one: its weight, bias and noise."""
    found = {}
    for key, product in layer.named_children():
        weight, bias = getattr(layer, f"weight_{key}"), getattr(layer, f"bias_{key}", None)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        plain.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        found[key] = quantize(plain, recipe=recipe)
        found[key].product.noise_key.copy_(product.noise_key)
    return found


def by_hand(kind: str, own: dict[str, Any], inner: Tensor, state: list[Tensor], of: str) -> Any:
    """A step of one layer, by its equations; inner: what the input's product gave."""
    outer = own[f"hh{of}"](state[0])
    if kind in ("tanh", "relu"):
        return [getattr(torch, kind)(inner + outer)]
    if kind == "gru":
        (ri, zi, ni), (rh, zh, nh) = inner.chunk(3, 1), outer.chunk(3, 1)
        r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
        n = torch.tanh(ni + r * nh)
        return [(state[0] - n) * z + n]
    i, f, g, o = (inner + outer).chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return [own[f"hr{of}"](hidden) if kind == "projected" else hidden, cell]


RECIPES = {name: getattr(recipes, name)() for name in ("int8", "banner2018", "mxfp8")} | {
    "noisy": NOISY, "nvfp4": recipes.nvfp4(), "delayed": recipes.get("fp8-delayed"),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("kind", ["tanh", "projected", "gru"])
def test_every_product_is_that_of_a_linear_layer(kind: str, recipe: Recipe) -> None:
    """Two layers, of which a loop over linear layers and the equations is the oracle: outputs, and
    gradients of input, state and weights, bit for bit."""
    torch.manual_seed(0)
    layer: Any = quantize(KINDS[kind](16, 16, 2), recipe=recipe)
    own = linears(layer, recipe)
    for turn in range(2):  # noise counts on, running ranges have moved
        x, begin = normal(3, 3, 16, seed=turn), states(layer, (3,))
        found = step(layer, [x], begin, "batch")
        leaf, first = x.clone().requires_grad_(), [s.clone().requires_grad_() for s in begin]
        tokens, last = leaf.flatten(0, 1), []
        for k in range(2):
            state, outputs = [s[k] for s in first], []
            for inner in own[f"ih_l{k}"](tokens).view(3, 3, -1):
                state = by_hand(kind, own, inner, state, f"_l{k}")
                outputs.append(state[0])
            tokens = torch.cat(outputs)
            last.append(state)
        ends = [tokens.view(3, 3, -1), *(torch.stack(s) for s in zip(*last, strict=True))]
        for linear in own.values():
            linear.zero_grad()
        weighted(ends).backward()
        weights = [(n.split("_", 1)[0], n.split("_", 1)[1]) for n, _ in layer.named_parameters()]
        grads = [getattr(own[key], name).grad for name, key in weights if key in own]
        expected = [*(t.detach() for t in ends), leaf.grad, *(s.grad for s in first), *grads]
        assert same(found, expected)


@pytest.mark.parametrize("recipe", ["int8", "noisy", "delayed"])
@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_every_product_of_a_cell_is_that_of_a_linear_layer(kind: str, recipe: str) -> None:
    torch.manual_seed(0)
    cell: Any = quantize(CELLS[kind](16, 16), recipe=RECIPES[recipe])
    own = linears(cell, RECIPES[recipe])
    x, state = normal(3, 16), [normal(3, 16, seed=i + 1) for i in range(1 + (kind == "lstm"))]
    for _ in range(2):
        found = cell_step(cell, x, state)
        leaf, hx = x.clone().requires_grad_(), [s.clone().requires_grad_() for s in state]
        ends = by_hand(kind, own, own["ih"](leaf), hx, "")
        for linear in own.values():
            linear.zero_grad()
        weighted(ends).backward()
        params = [getattr(own[k], n).grad for n in ("weight", "bias") for k in ("ih", "hh")]
        assert same(found, [*ends, leaf.grad, *(s.grad for s in hx), *params])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ["relu", "projected", "gru"])
def test_a_packed_sequence_is_as_alone(kind: str) -> None:
    """With a scale for each row, bit for bit; nothing of the others, nor of padding, enters."""
    torch.manual_seed(0)
    layer: Any = quantize(KINDS[kind](16, 16, 2, bidirectional=True), recipe=ROWS)
    leaves = [normal(n, 16, seed=n) * 10.0**n for n in (3, 4, 1, 2)]
    own = [x.clone().requires_grad_() for x in leaves]
    output, hx = layer(pack_sequence(own, enforce_sorted=False))
    output.data.square().sum().backward()
    padded, _ = nn.utils.rnn.pad_packed_sequence(output)
    for i, x in enumerate(leaves):
        alone = x.clone().requires_grad_()
        expected, last = layer(alone)
        expected.square().sum().backward()
        assert torch.equal(padded[: len(x), i], expected)
        for a, b in zip(tree_leaves(hx), tree_leaves(last), strict=True):
            assert torch.equal(a[:, i], b)
        torch.testing.assert_close(own[i].grad, alone.grad, rtol=1e-6, atol=0)


def test_padding_enters_a_scale_where_it_is_not_packed() -> None:
    torch.manual_seed(0)
    layer: Any = quantize(nn.GRU(16, 16), recipe="int8")
    x = pad_sequence([normal(4, 16), normal(2, 16, seed=1)], padding_value=1e4)
    packed = pack_padded_sequence(x, torch.tensor([4, 2]))
    clean = pack_padded_sequence(x.masked_fill(x == 1e4, 0.0), torch.tensor([4, 2]))
    found = [copy.deepcopy(layer)(given)[0].data for given in (packed, clean)]
    assert torch.equal(*found)
    assert not torch.equal(copy.deepcopy(layer)(x)[0][0], found[0][:2])


def test_full_sequences_that_are_packed_have_the_same_bits() -> None:
    torch.manual_seed(0)
    layer: Any = quantize(nn.LSTM(16, 16, 2, bidirectional=True), recipe=NOISY)
    x = normal(5, 3, 16)
    twin = copy.deepcopy(layer)
    packed = twin(pack_padded_sequence(x, torch.tensor([5, 5, 5])))[0].data
    assert torch.equal(packed, layer(x)[0].flatten(0, 1))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_weight_is_quantized_once_a_forward_where_that_is_the_same(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer: Any = quantize(nn.LSTM(32, 32), recipe=recipe)
    twin, x = copy.deepcopy(layer), normal(6, 3, 32)
    sizes: list[int] = []
    made = call.quantize
    monkeypatch.setattr(call, "quantize", lambda x, *a: sizes.append(x.numel()) or made(x, *a))
    found = step(layer, [x], [], "batch")
    monkeypatch.setattr(call, "repeats", lambda *a: False)
    once = len(sizes)
    assert same(found, step(twin, [x], [], "batch"))
    # noise and a state are another thing at each step; bits are the same either way
    assert (len(sizes) == 2 * once) == (recipe.name in ("noisy", "fp8-delayed"))
