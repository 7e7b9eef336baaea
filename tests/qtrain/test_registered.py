"""A layer of a user's own, computed by the function that was registered for its class."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from qtrain import Matmul, quantize, quantize_, register, set_recipe, summary
from qtrain.conversion import registered
from qtrain.conversion.registered import Registered
from qtrain.products.module import products_of


class Opaque(torch.autograd.Function):
    """x W, of which nothing is seen from outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad @ w.mT, x.flatten(0, -2).mT @ grad.flatten(0, -2)


class Mix(nn.Module):
    """y = fc(x) (scale W)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.weight = nn.Parameter(draw(8, 8, seed=1) / 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return Opaque.apply(self.fc(x), scale * self.weight)


class Narrow(Mix):
    """Inherits the forward."""


class Other(Mix):
    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return super().forward(x, scale) + 1


@register(Mix)
def mixed(self: Mix, x: Tensor, scale: float = 1.0) -> Tensor:
    return F.linear(self.fc(x), scale * self.weight.t())


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test registers."""
    known = dict(registered._FUNCTIONS)
    yield
    registered._FUNCTIONS.clear()
    registered._FUNCTIONS.update(known)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 8), Mix(), Narrow())


def stepped(model: nn.Module, count: int = 2) -> list[Tensor]:
    """The outputs and the parameters' gradients of some forwards."""
    found = []
    for seed in range(count):
        found.append(model(draw(4, 8, seed=seed)))
        found[-1].square().sum().backward()
    return [x.detach() for x in found] + [p.grad for p in model.parameters() if p.grad is not None]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


NAMES = ["0", "1.fc", "1.functional.linear0", "2.fc", "2.functional.linear0"]


def names(model: nn.Module) -> list[str]:
    return sorted(product.name for product in products_of(model))


def test_it_computes_as_the_same_forward_by_torchs_functions() -> None:
    class Written(Mix):
        forward = mixed

    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(8, 8), Written(), Written())
    model = quantize(net(), bits=4)
    assert equal(stepped(model), stepped(quantize(plain, bits=4)))
    assert names(model) == NAMES and isinstance(model[1], Mix) and isinstance(model[2], Narrow)


def test_a_subclass_with_its_own_forward_is_left_to_it() -> None:
    model = quantize(nn.Sequential(Other()))
    assert type(model[0]) is Other
    register(Other)(mixed)
    assert isinstance(quantize(nn.Sequential(Other()))[0], Registered)


def test_its_own_forward_runs_where_it_is_left() -> None:
    plain, x = net(), draw(4, 8)
    model = quantize(plain, overrides={"1": None})
    assert type(model[1]) is Mix and isinstance(model[2], Registered)
    assert model[1](x).equal(plain[1](x))
    model = quantize(plain, functional=False)
    assert type(model[1]) is Mix and type(model[2]) is Narrow
    assert "1 x Mix: its own forward, not the function registered for it" in str(summary(model))
    model = quantize_(net(), recipe="fp32")
    assert type(model[1]) is Mix and model(x).equal(plain(x))
    replaced = net()
    replaced[1].forward = lambda x: x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its fc does not run
        assert quantize(replaced)[1](x) is x


def test_recipes_come_and_go() -> None:
    model, again = quantize(net(), bits=8), quantize(net(), bits=8)
    first = stepped(model)
    set_recipe(model, "fp32")
    assert type(model[1]) is Mix and type(model[2]) is Narrow
    assert model(draw(4, 8)).equal(net()(draw(4, 8)))
    set_recipe(model, "int8")
    assert equal(first, stepped(again)) and type(model[1]) is type(again[1])
    model.zero_grad(), again.zero_grad()
    assert equal(stepped(model), stepped(again))
    set_recipe(model, "int8", {"1": None})
    assert type(model[1]) is Mix and "1 x Mix: left by an override (1)" in str(summary(model))
    set_recipe(model, "int8", {"1": 4})
    said = str(summary(model))
    assert isinstance(model[1], Registered) and "Mix: left" not in said
    assert "registered 1: Mix: computed by the function registered, " in said
    assert "override   1.fc, 1.functional.linear0, 1: " in said


def test_one_that_was_left_follows_later() -> None:
    model = quantize(net(), overrides={"1": None})
    set_recipe(model, "int8", {})
    said = str(summary(model, draw(4, 8)))
    assert isinstance(model[1], Registered) and "Mix: left" not in said
    assert f"registered 1: Mix: computed by the function registered, {__name__}.mixed" in said


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_continue_alike(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = quantize(net())
    stepped(model, 1)
    model.zero_grad()
    twin = copied(model)
    assert equal(stepped(model), stepped(twin)) and names(twin) == NAMES
    set_recipe(twin, "fp32")
    assert type(twin[1]) is Mix


def test_a_pickle_names_a_class_that_is_not_registered() -> None:
    saved = pickle.dumps(quantize(net()))
    kept = dict(registered._FUNCTIONS), dict(registered.joined.__globals__["_MADE"])
    registered._FUNCTIONS.clear()
    registered.joined.__globals__["_MADE"].clear()
    try:
        with pytest.raises(ValueError, match=r"Mix: a model was loaded .* qtrain.register\(Mix\)"):
            pickle.loads(saved)
    finally:
        registered._FUNCTIONS.update(kept[0])
        registered.joined.__globals__["_MADE"].update(kept[1])


def test_a_state_dict_loads_strictly() -> None:
    model = quantize(net())
    stepped(model, 1)
    model.zero_grad()
    fresh = quantize(net())
    fresh.load_state_dict(model.state_dict())
    assert equal(stepped(model), stepped(fresh))
    early = quantize(net(), example_inputs=draw(4, 8))
    assert names(early) == NAMES
    assert equal(stepped(early), stepped(quantize(net())))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    plain = net()[1:2]
    model, eager = quantize(plain, recipe="bf16"), quantize(plain, recipe="bf16")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for own, other in zip(stepped(compiled, 1), stepped(eager, 1), strict=True):
        torch.testing.assert_close(own, other)
    assert names(model) == ["1.fc", "1.functional.linear0"]
    set_recipe(model, "fp32")
    assert torch.equal(compiled(draw(4, 8)), plain(draw(4, 8)))


def test_a_checkpointed_one_repeats_its_calls() -> None:
    class Kept(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.inner, self.reentrant = net(), reentrant

        def forward(self, x: Tensor) -> Any:
            x = x.requires_grad_()
            if self.reentrant is None:
                return self.inner(x)
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    first, *others = (stepped(quantize(Kept(how))) for how in (None, False, True))
    assert all(equal(first, other) for other in others)


def test_hooks_run_once() -> None:
    plain, seen = net(), []
    plain[1].register_forward_hook(lambda *_: seen.append("forward"))
    plain[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    model = quantize(plain)
    model(draw(4, 8)).sum().backward()
    assert seen == ["forward", "backward"]


def test_a_parametrized_one_stays_it() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    plain = net()
    parametrize.register_parametrization(plain[1], "weight", Twice())
    model = quantize(plain)
    model(draw(4, 8)).sum().backward()
    assert isinstance(model[1], Registered) and "1.functional.linear0" in names(model)
    set_recipe(model, "fp32")
    assert not isinstance(model[1], Registered)
    assert model(draw(4, 8)).equal(plain(draw(4, 8)))
    set_recipe(model, "int8")
    parametrize.remove_parametrizations(model[1], "weight")
    assert isinstance(model[1], Registered) and not parametrize.is_parametrized(model[1])


def test_a_subclass_of_a_torch_layer_with_its_own_forward() -> None:
    class Fused(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return Opaque.apply(input, self.weight.t())

    assert "Fused: a subclass of Linear with its own forward" in str(summary(quantize(Fused(8, 8))))

    @register(Fused)
    def fused(self: Fused, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)

    model = quantize(Fused(8, 8))
    model(draw(4, 8))
    assert names(model) == ["functional.linear0"] and not summary(model).left
    with pytest.raises(ValueError, match=r"match no layer"):
        quantize(nn.Sequential(Fused(8, 8)), overrides={"0.product": None})


def test_a_cell_that_is_run_again_takes_its_place() -> None:
    def made(shift: float) -> Callable[..., Any]:
        def again(self: Other, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.fc(x) + shift  # type: ignore[no-any-return]

        return again

    register(Other)(made(1.0))
    model = quantize(nn.Sequential(Other()))
    before = model.eval()(draw(4, 8))
    register(Other)(made(2.0))
    assert torch.allclose(model(draw(4, 8)), before + 1)


def _swapped(self: Any, scale: float, x: Tensor) -> Any: ...
def _fewer(self: Any, x: Tensor) -> Any: ...
def _renamed(self: Any, x: Tensor, factor: float = 1.0) -> Any: ...
def _more(self: Any, x: Tensor, scale: float, other: float) -> Any: ...
def _default(self: Any, x: Tensor, scale: float = 2.0) -> Any: ...
def _same(module: Any, x: Tensor, scale: float = 1.0, **others: Any) -> Any: ...
def _open(*args: Any, **kwargs: Any) -> Any: ...


class Free(nn.Module):
    def forward(self, x: Tensor, /, *others: Tensor, causal: bool = False, **more: Any) -> Any: ...


def _closed(self: Any, input: Tensor, *others: Tensor, causal: bool = False) -> Any: ...
def _alike(self: Any, input: Tensor, *others: Tensor, causal: bool = False, **kw: Any) -> Any: ...


@pytest.mark.parametrize(
    ("cls", "function", "said"),
    [
        (nn.Linear(2, 2), _same, r"register: got Linear.*need a class.*give its class, Linear"),
        (int, _same, r"register: got .*int.*need a class of torch.nn.Module"),
        (nn.Linear, _same, r"Linear is a class of torch's or qtrain's, or has the forward of one"),
        (Matmul, _same, r"Matmul is a class of torch's or qtrain's"),
        (type("Own", (nn.Linear,), {}), _same, r"Own is a class of .* or has the forward of one"),
        (Mix, _same, r"register\(Mix\): got .*_same, and .*mixed is registered; a class has one"),
        (Other, "attend", r"register\(Other\): got 'attend', need a function of \(self, ...\)"),
        (Other, _swapped, r"it has 'scale' in the place of 'x'"),
        (
            Other,
            _fewer,
            r"_fewer\(.*\) cannot be called as Other.forward\(self, .*scale.*\) is: too many",
        ),
        (Other, _renamed, r"unexpected keyword argument 'scale'"),
        (Other, _more, r"missing a required argument: 'other'"),
        (Other, _default, r"the default of 'scale' is another"),
        (Free, _closed, r"got an unexpected keyword argument"),
    ],
)
def test_wrong_uses_are_named(cls: Any, function: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        register(cls)(function)


def test_what_can_be_called_so_is_taken() -> None:
    register(Free)(_alike)
    assert register(Mix)(mixed) is mixed
    for function in (_same, _open):
        assert register(Other)(function) is function
        registered._FUNCTIONS.pop(Other)
