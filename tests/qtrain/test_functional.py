"""Products that a forward computes by functions: each is its module's, bit for bit."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from qtrain import (
    Matmul,
    Monitor,
    ScaledDotProductAttention,
    accumulated,
    calibrate,
    cost,
    inspect,
    plain_state_dict,
    quantize,
    required_bits,
    sensitivity,
    set_recipe,
    summary,
)
from qtrain.layer_state import LayerState
from qtrain.products.module import products_of


@pytest.fixture(autouse=True)
def no_mode_stays() -> Iterator[None]:
    yield
    assert not _len_torch_function_stack()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Called(nn.Module):
    """A function of an input and a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(draw(*shape, seed=7))

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.weight)


class Twin(nn.Module):
    """The same by modules."""

    def __init__(self, function: Callable[..., Tensor], *products: nn.Module) -> None:
        super().__init__()
        self.function, self.products = function, nn.ModuleList(products)

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, *self.products)


class Data(Twin):
    """A product of the input and what was computed of a parameter."""

    def __init__(self, function: Callable[..., Tensor], weight: Tensor, product: nn.Module) -> None:
        super().__init__(function, product)
        self.weight = nn.Parameter(weight.clone())

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.weight, *self.products)


def linear(weight: Tensor) -> nn.Linear:
    """Of this weight, (out, in)."""
    made = nn.Linear(*reversed(weight.shape), bias=False)
    made.weight.data.copy_(weight)
    return made


def conv(kind: Any, weight: Tensor, **window: Any) -> nn.Module:
    groups = window.get("groups", 1)
    channels = (weight.shape[1] * groups, weight.shape[0])
    if "Transpose" in kind.__name__:
        channels = weight.shape[0], weight.shape[1] * groups
    made: nn.Module = kind(*channels, tuple(weight.shape[2:]), bias=False, **window)
    made.weight.data.copy_(weight)  # type: ignore[union-attr]
    return made


class Case(NamedTuple):
    function: Callable[[Tensor, Tensor], Tensor]
    weight: tuple[int, ...]
    input: tuple[int, ...]
    twin: Callable[[Tensor], nn.Module]
    layout: Callable[[Tensor], Tensor] = lambda grad: grad  # of the twin's weight gradient


def bilinear(x: Tensor, inner: nn.Module, outer: nn.Module) -> Tensor:
    half = inner(x).unflatten(-1, (3, 5))
    found: Tensor = outer(half, x[..., :5].unsqueeze(-1)).squeeze(-1)
    return found


TARGETS = torch.tensor([0, 2, 1, -100])
#: of groups of 2, 0 and 6
ENDS = torch.tensor([2, 2, 8], dtype=torch.int32)


def padded(x: Tensor) -> Tensor:
    """Groups of rows, each with zeros to six."""
    return torch.stack([F.pad(x[:2], (0, 0, 0, 4)), x[:0].new_zeros(6, x.shape[1]), x[2:8]])


def unpadded(x: Tensor) -> Tensor:
    return torch.cat([x[0, :2], x[2]])


def chained(*matrices: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch means to drop it
        return torch.chain_matmul(*matrices)


CASES = {
    "F.linear": Case(F.linear, (6, 8), (2, 3, 8), lambda w: linear(w)),
    "F.linear, a vector": Case(F.linear, (6, 8), (8,), lambda w: linear(w)),
    "matmul, a weight": Case(torch.matmul, (8, 6), (2, 3, 8), lambda w: linear(w.t()), Tensor.t),
    "@, a view of a weight": Case(
        lambda x, w: x @ w[:, 1], (8, 2, 6), (4, 8), lambda w: linear(w[:, 1].t()),
        lambda grad: torch.stack([torch.zeros(8, 6), grad.t()], 1),
    ),
    "mm": Case(torch.mm, (8, 6), (4, 8), lambda w: linear(w.t()), Tensor.t),
    "rmatmul": Case(
        lambda x, w: w.__rmatmul__(x), (8, 6), (4, 8), lambda w: linear(w.t()), Tensor.t
    ),
    "matmul, a weight on the left": Case(
        lambda x, w: w @ x.mT, (6, 8), (2, 3, 8),
        lambda w: Twin(lambda x, own: own(x).mT.contiguous(), linear(w)),
    ),
    "einsum, a weight first": Case(
        lambda x, w: torch.einsum("oi,bti->bot", w, x), (6, 8), (2, 3, 8),
        lambda w: Twin(lambda x, own: own(x.flatten(0, 1)).view(2, 3, 6).mT, linear(w)),
    ),
    "addmm, a bias": Case(
        lambda x, w: torch.addmm(torch.ones(6), x, w), (8, 6), (4, 8),
        lambda w: Twin(lambda x, own: own(x) + 1, linear(w.t())), Tensor.t,
    ),
    "addmm, scaled": Case(
        lambda x, w: torch.addmm(x[:, :6], x, w, beta=2, alpha=3), (8, 6), (4, 8),
        lambda w: Twin(lambda x, own: 3 * own(x) + 2 * x[:, :6], linear(w.t())), Tensor.t,
    ),
    "matmul, data": Case(
        lambda x, w: x @ w.relu(), (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()), w, Matmul()),
    ),
    "matmul, broadcast": Case(
        lambda x, w: x.matmul(w.relu()), (3, 8, 6), (2, 1, 4, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()), w, Matmul()),
    ),
    "matmul, vectors": Case(
        lambda x, w: (x @ w.relu()) * 1.5, (8,), (4, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()[:, None])[:, 0] * 1.5, w, Matmul()),
    ),
    "bmm": Case(
        lambda x, w: torch.bmm(x, w.relu()), (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()), w, Matmul()),
    ),
    "baddbmm": Case(
        lambda x, w: torch.baddbmm(x[..., :6], x, w.relu(), beta=0.5, alpha=2.0), (2, 8, 6),
        (2, 3, 8),
        lambda w: Data(lambda x, w, own: 2.0 * own(x, w.relu()) + 0.5 * x[..., :6], w, Matmul()),
    ),
    "baddbmm, beta 0": Case(
        lambda x, w: torch.baddbmm(x.new_full((2, 3, 6), torch.nan), x, w.relu(), beta=0),
        (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()), w, Matmul()),
    ),
    "baddbmm, one for all": Case(
        lambda x, w: torch.baddbmm(x[0, :, :6], x, w.relu()), (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()) + x[0, :, :6], w, Matmul()),
    ),
    "addbmm": Case(
        lambda x, w: torch.addbmm(x[0, :, :6], x, w.relu(), alpha=2.0), (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: 2.0 * own(x, w.relu()).sum(0) + x[0, :, :6], w, Matmul()),
    ),
    "addbmm, a row": Case(
        lambda x, w: x[0, 0, :6].addbmm(x, w.relu()), (2, 8, 6), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()).sum(0) + x[0, 0, :6], w, Matmul()),
    ),
    "einsum, a weight": Case(
        lambda x, w: torch.einsum("bsd,dhk->bshk", x, w), (8, 2, 3), (2, 4, 8),
        lambda w: Twin(
            lambda x, own: own(x.flatten(0, 1)).view(2, 4, 2, 3), linear(w.flatten(1).t())
        ),
        lambda grad: grad.t().unflatten(1, (2, 3)),
    ),
    "einsum, data": Case(
        lambda x, w: torch.einsum("bqd, bkd -> bkq", x, w.relu()), (2, 5, 8), (2, 3, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu().mT).mT, w, Matmul()),
    ),
    "einsum, implicit": Case(
        lambda x, w: torch.einsum("...qd,...dk", x, w.relu()), (8, 5), (2, 3, 8),
        lambda w: Data(
            lambda x, w, own: own(x.flatten(0, 1), w.relu()).view(2, 3, 5).mT, w, Matmul()
        ),
    ),
    "tensordot": Case(
        lambda x, w: torch.tensordot(x, w, dims=([1, 2], [1, 0])), (8, 3, 5), (2, 3, 8),
        lambda w: Twin(lambda x, own: own(x.flatten(1)), linear(w.permute(2, 1, 0).flatten(1))),
        lambda grad: grad.unflatten(1, (3, 8)).permute(2, 1, 0),
    ),
    "attention": Case(
        lambda x, w: F.scaled_dot_product_attention(x, w.relu(), x * 2, is_causal=True),
        (2, 4, 8), (2, 4, 8),
        lambda w: Data(
            lambda x, w, own: own(x, w.relu(), x * 2, is_causal=True), w,
            ScaledDotProductAttention(),
        ),
    ),
    "conv1d": Case(
        lambda x, w: F.conv1d(x, w, padding="same"), (6, 4, 3), (2, 4, 9),
        lambda w: conv(nn.Conv1d, w, padding="same"),
    ),
    "conv2d": Case(
        lambda x, w: F.conv2d(x, w, None, 2, 1, groups=2), (6, 4, 3, 3), (2, 8, 9, 9),
        lambda w: conv(nn.Conv2d, w, stride=2, padding=1, groups=2),
    ),
    "conv2d, one image": Case(
        lambda x, w: F.conv2d(x, w, stride=(2, 1)), (6, 4, 3, 3), (4, 9, 9),
        lambda w: conv(nn.Conv2d, w, stride=(2, 1)),
    ),
    "conv3d": Case(
        lambda x, w: F.conv3d(x, w, dilation=2), (6, 4, 2, 2, 2), (2, 4, 5, 5, 5),
        lambda w: conv(nn.Conv3d, w, dilation=2),
    ),
    "conv_transpose2d": Case(
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1, 2), (8, 3, 3, 3), (2, 8, 5, 5),
        lambda w: conv(
            nn.ConvTranspose2d, w, stride=2, padding=1, output_padding=1, groups=2
        ),
    ),
    "mv, a weight": Case(lambda x, w: torch.mv(w, x), (6, 8), (8,), lambda w: linear(w)),
    "mv, data": Case(
        lambda x, w: x.mv(w.relu()), (8,), (4, 8),
        lambda w: Data(lambda x, w, own: own(x, w.relu()[:, None])[:, 0], w, Matmul()),
    ),
    "dot": Case(
        lambda x, w: torch.dot(x, w), (8,), (8,),
        lambda w: Data(lambda x, w, own: own(x[None], w[:, None]).squeeze(), w, Matmul()),
    ),
    "vdot": Case(
        lambda x, w: x.vdot(w), (8,), (8,),
        lambda w: Data(lambda x, w, own: own(x[None], w[:, None]).squeeze(), w, Matmul()),
    ),
    "vecdot": Case(
        lambda x, w: torch.linalg.vecdot(x, w.relu(), dim=0), (8, 1), (8, 4),
        lambda w: Data(
            lambda x, w, own: own(x.t()[:, None], w.relu().t()[..., None])[:, 0, 0], w, Matmul()
        ),
    ),
    "vecdot, of other ranks": Case(
        lambda x, w: torch.linalg.vecdot(x, w.relu(), dim=0), (8,), (8, 8),
        lambda w: Data(
            lambda x, w, own: own(x.t()[:, None], w.relu()[:, None, None].expand(8, 8, 1))[:, 0, 0],
            w, Matmul(),
        ),
    ),
    "vecdot, one for all": Case(
        lambda x, w: torch.linalg.vecdot(x, w.relu()), (4, 1), (4, 8),
        lambda w: Data(
            lambda x, w, own: own(x[:, None], w.relu()[..., None].expand(4, 8, 1))[:, 0, 0],
            w, Matmul(),
        ),
    ),
    "addmv, a bias": Case(
        lambda x, w: torch.addmv(torch.ones(6), w, x), (6, 8), (8,),
        lambda w: Twin(lambda x, own: own(x) + 1, linear(w)),
    ),
    "addmv, scaled": Case(
        lambda x, w: x[:6].addmv(w.relu(), x, beta=2, alpha=3), (6, 8), (8,),
        lambda w: Data(
            lambda x, w, own: 3 * own(w.relu(), x[:, None])[:, 0] + 2 * x[:6], w, Matmul()
        ),
    ),
    "inner, a weight": Case(torch.inner, (6, 8), (2, 3, 8), lambda w: linear(w)),
    "inner, data": Case(
        lambda x, w: x.inner(w.relu()), (2, 3, 8), (4, 8),
        lambda w: Data(
            lambda x, w, own: own(x, w.relu().flatten(0, 1).t()).view(4, 2, 3), w, Matmul()
        ),
    ),
    "multi_dot": Case(
        lambda x, w: torch.linalg.multi_dot([x, w, x[0, :6]]), (8, 6), (4, 8),
        lambda w: Twin(
            lambda x, own, last: last(own(x), x[0, :6, None])[:, 0], linear(w.t()), Matmul()
        ),
        Tensor.t,
    ),
    "chain_matmul": Case(
        chained, (8, 6), (4, 8), lambda w: linear(w.t()), Tensor.t
    ),
    "linear_cross_entropy": Case(
        lambda x, w: F.linear_cross_entropy(x, w, TARGETS, label_smoothing=0.1), (6, 8), (4, 8),
        lambda w: Twin(
            lambda x, own: F.cross_entropy(own(x), TARGETS, label_smoothing=0.1), linear(w)
        ),
    ),
    "grouped_mm, rows": Case(
        lambda x, w: F.grouped_mm(x, w.mT, offs=ENDS), (3, 4, 8), (8, 8),
        lambda w: Data(lambda x, w, own: unpadded(own(padded(x), w.mT)), w, Matmul()),
    ),
    "grouped_mm, columns": Case(
        lambda x, w: F.grouped_mm(w, x.t(), offs=ENDS), (3, 4, 8), (8, 8),
        lambda w: Data(lambda x, w, own: unpadded(own(w, padded(x).mT).mT).t(), w, Matmul()),
    ),
    "grouped_mm, inside": Case(
        lambda x, w: F.grouped_mm(x.t(), w, offs=ENDS), (8, 4), (8, 8),
        lambda w: Data(lambda x, w, own: own(padded(x).mT, padded(w)), w, Matmul()),
    ),
    "grouped_mm, batches": Case(
        lambda x, w: torch._grouped_mm(x, w.mT), (3, 4, 8), (3, 8, 8),
        lambda w: Data(lambda x, w, own: own(x, w.mT), w, Matmul()),
    ),
    "bilinear": Case(
        lambda x, w: F.bilinear(x[..., :5], x, w), (3, 5, 8), (4, 8),
        lambda w: Twin(bilinear, linear(w.flatten(0, 1)), Matmul()),
        lambda grad: grad.unflatten(0, (3, 5)),
    ),
}  # fmt: skip


def steps(model: nn.Module, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of input and weight, of the second of two steps."""
    for _ in range(2):
        model.zero_grad()
        x = input.clone().requires_grad_()
        output = model(x)
        output.backward(draw(*output.shape, seed=3))
        (weight,) = model.parameters()
        assert x.grad is not None and weight.grad is not None
    return output.detach(), x.grad, weight.grad


def evaluated(model: nn.Module, input: Tensor) -> nn.Module:
    """The model after a forward that leaves no trace but its calls' layers."""
    with torch.no_grad():
        model.eval()(input)
    return model.train()


def states(model: nn.Module) -> list[LayerState]:
    return [module for module in model.modules() if isinstance(module, LayerState)]


@pytest.mark.parametrize("recipe", ["int8", "banner2018", "fp8", "mxfp8"])
@pytest.mark.parametrize("name", CASES)
def test_a_call_is_its_module_bit_for_bit(name: str, recipe: str) -> None:
    case = CASES[name]
    input = draw(*case.input)
    called = Called(case.function, *case.weight)
    model = evaluated(quantize(called, recipe=recipe), input)
    twin = quantize(case.twin(called.weight.detach()), recipe=recipe)
    assert len(states(model)) == len(states(twin))
    for own, other in zip(states(model), states(twin), strict=True):
        other.noise_key.copy_(own.noise_key)
    output, grad_input, grad_weight = steps(model, input)
    expected, expected_input, expected_weight = steps(twin, input)
    assert torch.equal(output, expected.view_as(output))
    assert torch.equal(grad_input, expected_input)
    assert torch.equal(grad_weight, case.layout(expected_weight))
    assert not torch.equal(output, case.function(input, called.weight))  # it was quantized


@pytest.mark.parametrize("name", CASES)
def test_off_is_torchs(name: str) -> None:
    case = CASES[name]
    input, called = draw(*case.input), Called(case.function, *case.weight)
    model = quantize(called)
    steps(model, input)
    set_recipe(model, "fp32")
    for own, other in zip(steps(model, input), steps(called, input), strict=True):
        assert torch.equal(own, other)
    fresh = quantize(called, recipe="fp32")
    for own, other in zip(steps(fresh, input), steps(called, input), strict=True):
        assert torch.equal(own, other)
    assert not states(fresh)


class Attention(nn.Module):
    """With projections of its own, a mask and a norm of the scores."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Parameter(draw(width, width, seed=5) / 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        scores = torch.einsum("bqd,bkd->bqk", q, k)
        x = torch.baddbmm(x, scores.softmax(-1), v)
        return (F.linear(x, self.out) + F.scaled_dot_product_attention(q, k, v)) / 2


class Net(nn.Module):
    """Blocks, one of them shared, one checkpointed where asked."""

    def __init__(self, checkpointed: str = "") -> None:
        super().__init__()
        self.first, self.second = Attention(), Attention()
        self.head = nn.Parameter(draw(8, 4, seed=6))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed == "module":
            x = checkpoint(self.first, x, use_reentrant=False)
        elif self.checkpointed == "reentrant":
            x = checkpoint(self.first, x, use_reentrant=True)
        else:
            x = self.first(x)
        x = self.second(self.second(x))
        if self.checkpointed in ("function", "reentrant"):
            reentrant = self.checkpointed == "reentrant"
            return checkpoint(self.ended, x, use_reentrant=reentrant)
        return self.ended(x)

    def ended(self, x: Tensor) -> Tensor:
        x = x @ x.mT @ x / 40
        return self.first(x) @ self.head / 10


def net(checkpointed: str = "") -> Net:
    torch.manual_seed(0)
    return Net(checkpointed)


def trained(model: nn.Module, count: int = 3, first: int = 0) -> list[Tensor]:
    """The losses and last gradients of some SGD steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = []
    for step in range(first, first + count):
        optimizer.zero_grad()
        loss = model(draw(2, 5, 8, seed=step).requires_grad_()).square().mean()
        loss.backward()
        found.append(loss.detach())
        optimizer.step()
    return [*found, *(p.grad for p in model.parameters() if p.grad is not None)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    assert all(bool(x.isfinite().all()) for x in one)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


NAMES = [
    "first.functional.matmul0", "first.functional.matmul1", "first.functional.linear0",
    "first.functional.attention0",
]  # fmt: skip


def test_each_call_has_a_layer_of_its_own() -> None:
    model = quantize(net())
    trained(model, 1)
    shown = summary(model, draw(2, 5, 8))
    assert shown.outside == {} and not shown.never_ran
    assert list(shown.converted) == [
        "first.project", "second.project", *NAMES, *(n.replace("first", "second") for n in NAMES),
        "functional.matmul0", "functional.matmul1", "functional.linear0",
    ]  # fmt: skip
    assert [p.name for p in products_of(model.first)][1:] == [  # type: ignore[arg-type]
        *NAMES[:3], "first.functional.attention0.scores", "first.functional.attention0.context",
    ]  # fmt: skip
    keys = {int(state.noise_key) for state in states(model)}
    assert len(keys) == len(states(model)) == 15


def test_a_state_dict_makes_the_layers_of_a_model_that_never_ran() -> None:
    model = quantize(net(), recipe="banner2018")
    trained(model)
    fresh = quantize(net(), recipe="banner2018", seed=5)
    fresh.load_state_dict(model.state_dict())
    assert list(fresh.state_dict()) == list(model.state_dict())
    assert equal(trained(model, first=3), trained(fresh, first=3))


def test_a_plain_state_dict_comes_and_goes() -> None:
    model, original = quantize(net()), net()
    trained(model, 1)
    original.load_state_dict(plain_state_dict(model))
    trained(original)
    model.load_state_dict(original.state_dict())
    assert list(plain_state_dict(model)) == list(original.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_continue_alike_and_apart(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = quantize(net())
    early = copied(model)
    trained(model, 1)
    late = copied(model)
    trained(early, 1)
    assert equal(trained(model, first=1), trained(late, first=1))
    assert not {id(state) for state in states(model)} & {id(state) for state in states(late)}
    assert list(early.state_dict()) == list(late.state_dict())


@pytest.mark.parametrize("kind", ["module", "function", "reentrant"])
def test_checkpointed_segments_repeat_their_calls(kind: str) -> None:
    plain, model = quantize(net(), recipe="banner2018"), quantize(net(kind), recipe="banner2018")
    assert equal(trained(plain), trained(model))
    assert list(plain.state_dict()) == list(model.state_dict())


class Small(nn.Module):
    """A product in a checkpointed function, and one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(8, 8, seed=6))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.ended, x, use_reentrant=False)
        return x @ x.mT

    def ended(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_in_one_graph_before_any_forward() -> None:
    torch._dynamo.reset()
    eager, model = quantize(Small(), recipe="bf16"), quantize(Small(), recipe="bf16")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for own, other in zip(trained(eager), trained(compiled), strict=True):
        torch.testing.assert_close(own, other)
    assert list(eager.state_dict()) == list(model.state_dict())
    assert [product.name for product in products_of(model)] == [
        "functional.linear0", "functional.matmul0",
    ]  # fmt: skip


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_noise_is_the_eager_one() -> None:
    torch._dynamo.reset()
    eager, model = quantize(net()), quantize(net())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert equal(trained(eager), trained(compiled))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_method_of_tensors_in_python_compiles_in_the_graph() -> None:
    torch._dynamo.reset()
    called = Called(lambda x, w: F.linear(x, w).unflatten(-1, (2, 3)), 6, 8)
    compiled = torch.compile(quantize(called), fullgraph=True, backend="aot_eager")
    for own, other in zip(
        steps(compiled, draw(4, 8)), steps(quantize(called), draw(4, 8)), strict=True
    ):
        assert torch.equal(own, other)


def test_a_submodule_alone_is_the_models() -> None:
    model, whole = quantize(net()), quantize(net())
    x = draw(2, 5, 8)
    evaluated(whole, x)
    assert torch.equal(model.first(x), whole.first(x))  # type: ignore[operator]
    assert set(dict(model.first.named_modules())) == set(dict(whole.first.named_modules()))


def test_overrides_name_calls() -> None:
    overrides = {"second": None, "first.functional.matmul1": 4, "*.functional.linear0": None}
    model = quantize(net(), overrides=overrides)
    trained(model, 1)
    made = {product.name: product.recipe for product in products_of(model)}
    assert set(made) == {
        "first.project", *NAMES[:2], "first.functional.attention0.scores",
        "first.functional.attention0.context", "functional.matmul0", "functional.matmul1",
        "functional.linear0",
    }  # fmt: skip
    assert made[NAMES[1]] != made[NAMES[0]]
    set_recipe(model, "int8", overrides={})
    trained(model, 1)
    assert NAMES[2] in {product.name for product in products_of(model)}


def test_functional_false_leaves_them_and_names_them() -> None:
    model = quantize(net(), functional=False)
    with pytest.warns(UserWarning, match=r"first: bmm, .*ran in full precision"):
        model(draw(2, 5, 8))
    assert {product.name for product in products_of(model)} == {"first.project", "second.project"}
    with pytest.raises(TypeError, match=r"functional: got 'no', need True or False"):
        quantize(net(), functional="no")  # type: ignore[arg-type]


class Rotary(nn.Module):
    """A product of constants beside one of activations."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("frequencies", torch.rand(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        angles = self.frequencies @ torch.arange(3.0)[None]
        x = self.fc(x)
        return x @ x.mT + angles.sum()


def test_a_product_without_a_gradient_stays() -> None:
    model = quantize(Rotary())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(draw(3, 4))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]
    shown = summary(model, draw(3, 4))
    assert shown.constant == {"(model)": ["mm"]} and shown.outside == {}
    with torch.no_grad():  # as it was decided where it could be seen
        model.eval()(draw(3, 4))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]


class Low(nn.Module):
    """A weight and a product of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(draw(4, 2)), nn.Parameter(draw(2, 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    ("function", "name"), [(F.linear, "linear0"), (lambda x, w: (x * w) @ (x * w), "matmul0")]
)
def test_function_transforms_around_a_forward_are_refused_as_by_layers(
    function: Any, name: str, ran: bool
) -> None:
    model, x = quantize(Called(function, 8, 8)), draw(3, 8, 8)
    if ran:
        model(x)
    before = model.state_dict()
    message = rf"layer 'functional.{name}': .*torch\.func"
    with pytest.raises(ValueError, match=message):
        torch.func.vmap(model)(x)
    with pytest.raises(ValueError, match=message):
        torch.func.grad(lambda x: model(x).sum())(x)
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match="jit"):
        torch.jit.trace(model, x)
    assert list(model.state_dict()) == list(before)
    off = set_recipe(model, "fp32")
    assert torch.func.vmap(off)(x).shape == x.shape


def test_a_product_in_a_forwards_own_transform_is_left_and_named() -> None:
    within = quantize(Called(lambda x, w: torch.func.vmap(F.linear, (0, None))(x @ w, w), 8, 8))
    with pytest.warns(UserWarning, match="ran in full precision"):
        within(draw(3, 8))
    assert [product.name for product in products_of(within)] == ["functional.linear0"]


def test_what_computes_a_weight_stays() -> None:
    called = Called(F.linear, 4, 4)
    parametrize.register_parametrization(called, "weight", Low())
    model = quantize(called)
    with pytest.warns(UserWarning, match=r"parametrizations.weight.0: mm ran in full precision"):
        model(draw(3, 4))
    assert [product.name for product in products_of(model)] == ["functional.linear0"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_stays_and_is_named() -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4), torch.jit.script(Low()), Rotary()))
    with pytest.warns(UserWarning, match=r"1: mm ran in full precision"):
        model(draw(4, 4))
    names = [product.name for product in products_of(model)]
    assert names == ["0", "2.fc", "2.functional.matmul0"]


def test_products_in_place_are_named() -> None:
    model = quantize(Called(lambda x, w: torch.zeros(3, 4).addmm_(x, w), 4, 4))
    with pytest.warns(UserWarning, match=r"\(model\): addmm ran in full precision"):
        model(draw(3, 4))


def test_what_ctrl_c_ends_is_forgotten() -> None:
    class Stopped(Net):
        stops = True

        def ended(self, x: Tensor) -> Tensor:
            if self.stops:
                raise KeyboardInterrupt
            return super().ended(x)

    model = quantize(Stopped())
    with pytest.raises(KeyboardInterrupt):
        model(draw(2, 5, 8))
    x = draw(3, 3)
    assert torch.equal(x @ x, x.matmul(x))
    assert not any("functional" in name for name, _ in model.named_children())
    model.stops = False  # type: ignore[assignment]
    model(draw(2, 5, 8))
    assert not _len_torch_function_stack()


def test_an_attribute_in_the_way_is_named() -> None:
    class Taken(nn.Module):
        functional = "mine"

        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    model = quantize(nn.Sequential(nn.Linear(4, 4), Taken()))
    with pytest.raises(ValueError, match=r"layer '1': it has an attribute 'functional'"):
        model(draw(4, 4))


def test_example_inputs_make_the_layers_at_once() -> None:
    model = quantize(net(), example_inputs=draw(2, 5, 8))
    ran = quantize(net())
    trained(ran, 1)
    assert list(model.state_dict()) == list(ran.state_dict())
    again = quantize(net())
    assert equal(trained(model), trained(again))
    by_name = quantize(net(), example_inputs={"x": draw(2, 5, 8)})
    assert list(by_name.state_dict()) == list(ran.state_dict())
    with pytest.raises(TypeError, match=r"example_inputs: got .*None beside functional=False"):
        quantize(net(), functional=False, example_inputs=draw(2, 5, 8))


def test_a_forward_that_looks_at_values_is_found_on_a_copy() -> None:
    class Looks(Rotary):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = quantize(Looks(), example_inputs=torch.ones(3, 4))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_constants_are_found_where_no_gradient_is_asked_for(how: str) -> None:
    model = quantize(Rotary())
    model.requires_grad_(how != "frozen")
    with torch.set_grad_enabled(how != "no_grad"):
        model(draw(3, 4))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]


class Cache:
    """Keys of earlier forwards, as a language model's."""

    def __init__(self) -> None:
        self.keys = torch.zeros(0, 4)

    def update(self, keys: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, keys])
        return self.keys


def test_what_a_forward_writes_to_is_written_once() -> None:
    class Cached(Rotary):
        def forward(self, x: Tensor, cache: Cache) -> Tensor:  # type: ignore[override]
            return super().forward(cache.update(x))

    model, cache = quantize(Cached()).eval(), Cache()
    with torch.no_grad():
        for length in (3, 4):
            model(draw(length, 4), cache)
    assert torch.equal(cache.keys, torch.cat([draw(3, 4), draw(4, 4)]))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]
    again = Cache()
    quantize(Cached(), example_inputs=(draw(3, 4), again))
    assert not len(again.keys)


def total(output: Tensor) -> Tensor:
    return output.sum()


ASIDE: dict[str, Callable[..., Any]] = {
    "summary": lambda model, x, cache: summary(model, x, cache=cache),
    "cost": lambda model, x, cache: cost(model, x, cache),
    "inspect": lambda model, x, cache: inspect(model, (x, cache), loss=total),
    "accumulated": lambda model, x, cache: accumulated(model, (x, cache), loss=total),
    "required_bits": lambda model, x, cache: required_bits(model, (x, cache), loss=total),
    "sensitivity": lambda model, x, cache: sensitivity(model, (x, cache), loss=total, by="layer"),
    "calibrate": lambda model, x, cache: calibrate(model, [({"x": x, "cache": cache},)]),
}


@pytest.mark.cases(len(ASIDE), 1)
@pytest.mark.parametrize("look", ASIDE)
def test_what_looks_aside_writes_to_nothing_of_the_users(look: str) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Any, cache: Cache | None = None) -> Any:
            if cache is None:
                x, cache = x["x"], x["cache"]
            x.add_(1)
            return self.fc(cache.update(x))

    model, x, cache = quantize(Writes()), draw(3, 4), Cache()
    ASIDE[look](model, x, cache)
    assert torch.equal(x, draw(3, 4)) and not len(cache.keys)
    if look == "summary":  # what cannot be copied is given as it is
        cache.lock = threading.Lock()  # type: ignore[attr-defined]
        summary(model, x, cache)
        assert len(cache.keys)


def test_an_input_that_may_not_ask_for_a_gradient() -> None:
    class Asks(Rotary):
        def forward(self, x: Tensor) -> Tensor:
            x = x[:]
            x.requires_grad = True  # of an input's view, where the input asks for one, an error
            return super().forward(x)

    model = quantize(Asks(), example_inputs=draw(3, 4))
    assert [product.name for product in products_of(model)] == ["fc", "functional.matmul0"]


def test_a_learned_recipe_needs_its_layers_before_the_optimizer() -> None:
    with pytest.raises(ValueError, match=r"layer 'first.functional.matmul0'.*example_inputs"):
        quantize(net(), recipe="lsq")(draw(2, 5, 8))
    model = quantize(net(), recipe="lsq", example_inputs=draw(2, 5, 8))
    names = [name for name, _ in model.named_parameters() if ".functional." in name]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in names}
    trained(model)
    after = dict(model.named_parameters())
    assert names and all(not torch.equal(before[name], after[name]) for name in names)
    fresh = quantize(net(), recipe="lsq")
    fresh.load_state_dict(model.state_dict())
    assert equal(trained(model), trained(fresh))


def test_reports_see_calls_that_have_not_run() -> None:
    x, targets = draw(2, 5, 8), torch.zeros(2, 5, dtype=torch.long)
    fresh, ran = quantize(net()), quantize(net())
    evaluated(ran, x)
    for model in (fresh, ran):
        rows = {row.layer for row in inspect(model, x, targets).rows}
        assert {*NAMES[:3], "functional.linear0", "first.functional.attention0.scores"} <= rows
        rows = {row.layer for row in cost(model, x).rows}
        assert {*NAMES[:3], "functional.linear0", "first.functional.attention0.scores"} <= rows
    assert not any(".functional" in name for name, _ in fresh.named_modules())
    plain = {row.layer for row in cost(net(), x).rows}
    left = {row.layer for row in cost(quantize(net(), functional=False), x).rows}
    assert plain == left == {row.layer for row in cost(fresh, x).rows}


def test_reports_see_calls_of_a_conversion_within_a_module() -> None:
    x, targets = draw(2, 5, 8), torch.zeros(2, 5, dtype=torch.long)
    within = nn.Sequential(quantize(net()))
    for rows in (inspect(within, x, targets).rows, cost(within, x).rows):
        assert {"functional.linear0", "first.functional.matmul0"} <= {row.layer for row in rows}


def test_the_share_of_multiply_adds_is_said() -> None:
    """Of 2 x 5 tokens of width 8: a block projects to 24 and 8 and multiplies 4 matrices, 5 x 5 x 8
    each; three of them run, two matrices more and the head."""
    x = draw(2, 5, 8)
    block, rest = 10 * 8 * (24 + 8) + 2 * 4 * 5 * 5 * 8, 2 * 2 * 5 * 5 * 8 + 10 * 8 * 4
    whole = summary(quantize(net()), x).share
    assert whole is not None and whole.value == 1 and whole.simulated == 4 * block + rest
    left = summary(quantize(net(), functional=False), x)
    assert left.share is not None and left.share.simulated == 4 * 10 * 8 * 24
    assert left.share.simulated + left.share.left.total() == whole.simulated
    assert "43.2 % of the forward's multiply-adds follow the recipe" in str(left)
    assert "not: Attention 50 %, Net 6.3 %" in str(left)
    part = summary(quantize(net(), overrides={"first": None}), x).share
    assert part is not None and part.left == {
        "first": 2 * (block - 10 * 8 * 24), "first.project": 2 * 10 * 8 * 24,
    }  # fmt: skip


def test_a_monitor_names_the_calls_that_it_does_not_see() -> None:
    for model in (quantize(net()), quantize(net(), example_inputs=draw(2, 5, 8))):
        made = any(".functional" in name for name, _ in model.named_modules())
        monitor = Monitor(model, every=1, layers=None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(model, 2)
        monitor.close()
        said = [str(w.message) for w in caught if "Monitor" in str(w.message)]
        assert len(said) == (not made) and all("first.functional.attention0" in x for x in said)
        seen = {row.layer for row in monitor.rows}
        assert ("functional.linear0" in seen) == made


def test_calls_in_another_order_are_an_error_where_that_shows() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Parameter(draw(4, 8)), nn.Parameter(draw(8, 8))

        def forward(self, x: Tensor, wide: bool) -> Tensor:
            return F.linear(x, self.wide if wide else self.narrow)

    model = quantize(Branches())
    model(draw(3, 8), False)
    with pytest.raises(
        ValueError, match=r"layer 'functional.linear0'.*\(1, 4, 8\), and is \(1, 8, 8\)"
    ):
        model(draw(3, 8), True)
    left = quantize(Branches(), overrides={"functional.linear*": None})
    left(draw(3, 8), False)
    assert left(draw(3, 8), True).shape == (3, 8)


def test_left_or_taken_attention_has_as_many_multiply_adds() -> None:
    """Of queries and keys of several lengths, whichever operation torch runs for it."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.project(x[..., :3, :]), x, x[..., :6])

    x = torch.randn(2, 4, 5, 8)
    taken, left = (
        summary(quantize(Attention(), functional=functional), x).share
        for functional in (True, False)
    )
    assert taken is not None and left is not None
    assert taken.simulated == 2 * 4 * 3 * (8 * 8 + 5 * (8 + 6)) and not left.uncounted
    assert taken.value == 1 and left.left == {"(model)": taken.simulated - left.simulated}
