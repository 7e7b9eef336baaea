"""Bounded weight norm and weight norm, on every kind of weight, with all else that touches one."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qtrain import (
    CorrectedSteps,
    bound_weights,
    bound_weights_,
    channel_norms,
    inspect,
    plain_state_dict,
    quantize,
    summary,
    unbound_weights_,
    weight_norm,
    weight_norm_,
)
from qtrain.weights.bounded import WeightNorm
from qtrain.weights.channels import Channels, weights

ORDERS = (1, 2, math.inf)
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "lstm": (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), (5, 2, 4)),
    "cell": (lambda: nn.GRUCell(4, 3), (2, 4)),
}


def norms_by_hand(module: nn.Module, weight: Tensor, p: float) -> Tensor:
    """The channels' norms, taken one by one."""
    if isinstance(module, nn.ConvTranspose2d):
        groups, inputs = module.groups, weight.shape[0] // module.groups
        rows = [
            weight[g * inputs : (g + 1) * inputs, o]
            for g in range(groups)
            for o in range(weight.shape[1])
        ]
    else:
        rows = list(weight)
    return torch.stack([row.flatten().norm(p) for row in rows])


def output(module: nn.Module, x: Tensor) -> Tensor:
    found = module(x)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_channel_has_the_mean_of_the_initial_norms(name: str, p: float) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make()
    bounded = bound_weights(plain, p)
    assert not parametrize.is_parametrized(plain)  # a copy
    assert len(weights(bounded)) == len(weights(plain)) > 0
    for key, weight in weights(bounded).items():
        before = weights(plain)[key].tensor
        rho = norms_by_hand(plain, before, p).mean()
        after = norms_by_hand(plain, weight.tensor, p)
        torch.testing.assert_close(after, rho.expand_as(after))
        cosine = nn.functional.cosine_similarity(weight.tensor.flatten(), before.flatten(), dim=0)
        assert cosine > 0.9 and torch.equal(weight.parameter, before)  # v starts as the weight
    output(bounded, torch.randn(shape)).sum().backward()
    optimizer = torch.optim.SGD(bounded.parameters(), lr=0.1)
    optimizer.step()
    for key, weight in weights(bounded).items():  # whatever the step
        rho = norms_by_hand(plain, weights(plain)[key].tensor, p).mean()
        after = norms_by_hand(plain, weight.tensor, p)
        torch.testing.assert_close(after, rho.expand_as(after))


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("p", ORDERS)
def test_the_gradient_is_that_of_the_definition(p: float, groups: int) -> None:
    v = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    bound = WeightNorm(v.detach() * 2, p, Channels(groups))
    assert torch.autograd.gradcheck(bound, (v,))
    if p == 2 and not groups:
        (grad,) = torch.autograd.grad(bound(v).square().mul(torch.rand_like(v)).sum(), v)
        assert (grad * v).sum((1, 2)).abs().max() < 1e-12  # nothing along v


@pytest.mark.parametrize("p", ORDERS)
def test_a_channel_of_zeros_stays_one_and_poisons_nothing(p: float) -> None:
    v = torch.randn(3, 4)
    v[1] = 0
    v.requires_grad_()
    w = WeightNorm(v.detach(), p)(v)
    w.sum().backward()
    assert v.grad is not None and torch.isfinite(w).all() and torch.isfinite(v.grad).all()
    assert not w[1].any() and not v.grad[1].any() and v.grad[0].any()


def test_nan_is_passed_on() -> None:
    v = torch.ones(2, 3)
    v[0, 0] = torch.nan
    assert WeightNorm(torch.ones(2, 3))(v)[0].isnan().all()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def step(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 8, 8)
    out = model(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_bounding_and_quantizing_commute() -> None:
    one = quantize(bound_weights(network()))
    other = bound_weights_(quantize(network()))
    for a, b in zip(step(one), step(other), strict=True):
        assert torch.equal(a, b)
    # what is quantized is the bounded weight: doubling v changes no bit
    doubled = copy.deepcopy(one)
    for weight in weights(doubled).values():
        weight.parameter.data.mul_(2)
    assert torch.equal(step(doubled)[0], step(one)[0])


def test_mean_only_batch_norm_subtracts_the_mean_and_learns_its_bias_alone() -> None:
    model = quantize(bound_weights(network()), recipe="fp32", norm="none")
    x = torch.randn(4, 3, 8, 8)
    y = model[0](x)
    expected = y - y.mean((0, 2, 3), keepdim=True) + model[1].bias.view(1, -1, 1, 1)
    torch.testing.assert_close(model[1](y), expected)
    assert not model[1].weight.requires_grad and model[1].bias.requires_grad
    step(model)
    assert model[1].weight.grad is None and model[1].bias.grad is not None
    model.eval()
    mean = model[1].running_mean.view(1, -1, 1, 1)
    torch.testing.assert_close(model[1](y), y - mean + model[1].bias.view(1, -1, 1, 1))


def test_copies_checkpoints_and_pickles_keep_the_bound() -> None:
    model = bound_weights(network(), p=1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = bound_weights(nn.Sequential(*[copy.deepcopy(m) for m in network()]), p=1)
    for weight in weights(fresh).values():
        weight.parameter.data.normal_()
        weight.module.parametrizations[weight.name][0].rho.fill_(9)  # type: ignore[index,union-attr]
    fresh.load_state_dict(torch.load(file))
    for again in (copy.deepcopy(model), fresh):
        assert torch.equal(step(again)[0], step(copy.deepcopy(model))[0])


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_compiled_steps_have_the_same_gradients() -> None:
    torch._dynamo.reset()
    model = bound_weights(network())
    eager, compiled = copy.deepcopy(model), copy.deepcopy(model)
    found = step(torch.compile(compiled, backend="aot_eager", fullgraph=True))  # type: ignore[arg-type]
    for a, b in zip(found, step(eager), strict=True):
        torch.testing.assert_close(a, b)


def test_unbinding_leaves_plain_weights_of_the_same_value() -> None:
    model = bound_weights(network())
    values = [weight.tensor.detach().clone() for weight in weights(model).values()]
    unbound_weights_(model)
    for weight, value in zip(weights(model).values(), values, strict=True):
        assert type(weight.tensor) is nn.Parameter and torch.equal(weight.tensor, value)
    network().load_state_dict(plain_state_dict(model))
    with pytest.raises(ValueError, match=r"none of its weights is bounded"):
        unbound_weights_(model)


def test_what_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p: got 3, need 1, 2 or math.inf"):
        bound_weights(network(), p=3)
    with pytest.raises(ValueError, match=r"p: got True"):
        bound_weights(network(), p=True)
    for wrong in (torch.tensor([1, 2]), "2", None, [1, 2]):
        with pytest.raises(ValueError, match=r"p: got .*, need 1, 2 or math.inf"):
            weight_norm(network(), p=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"skip: 'fc' matches no layer with a weight; those are 0"):
        bound_weights(network(), skip=["fc"])
    with pytest.raises(TypeError, match=r"skip: got '0', need a list"):
        bound_weights(network(), skip="0")
    with pytest.raises(ValueError, match=r"0\.weight is parametrized already"):
        bound_weights(bound_weights(network()))
    with pytest.raises(ValueError, match=r"no weight to norm"):
        bound_weights(nn.ReLU())
    model = bound_weights(network(), skip=["4"])
    assert parametrize.is_parametrized(model[0]) and not parametrize.is_parametrized(model[4])


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", LAYERS)
def test_weight_norm_starts_as_the_same_function_and_learns_the_norms(name: str, p: float) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make()
    normed = weight_norm(plain, p)
    assert not parametrize.is_parametrized(plain)  # a copy
    x = torch.randn(shape)
    for key, weight in weights(normed).items():
        torch.testing.assert_close(weight.tensor, weights(plain)[key].tensor, rtol=1e-6, atol=0)
    torch.testing.assert_close(output(normed, x), output(plain, x))
    output(normed, x).square().sum().backward()
    torch.optim.SGD(normed.parameters(), lr=0.1).step()
    moved = 0.0
    for weight in weights(normed).values():
        g = weight.module.parametrizations[weight.name][0].g  # type: ignore[index,union-attr]
        assert g.numel() == len(norms_by_hand(plain, weight.tensor, p))
        moved += float(g.grad.abs().max())  # a cell's state of zeros gives its weight none
        torch.testing.assert_close(norms_by_hand(plain, weight.tensor, p), g.abs().flatten())
    assert moved > 0


def test_weight_norm_is_torchs_own() -> None:
    """Against torch.nn.utils.parametrizations.weight_norm, through steps with momentum."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    theirs = copy.deepcopy(ours)
    weight_norm_(ours)
    for layer in (theirs[0], theirs[2]):
        nn.utils.parametrizations.weight_norm(layer)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (ours, theirs)]
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(weights(ours).values(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(a.tensor, b.tensor)


def test_weight_norm_and_quantizing_commute() -> None:
    one = quantize(weight_norm(network()))
    other = weight_norm_(quantize(network()))
    assert len(list(one.parameters())) == len(list(network().parameters())) + 2  # two g
    for a, b in zip(step(one), step(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_weight_norm_is_copied_saved_compiled_and_removed() -> None:
    model = weight_norm(network(), p=1, skip=["4"])
    step(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # g and v now differ
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = weight_norm(network(), p=1, skip=["4"])
    fresh.load_state_dict(torch.load(file))
    torch._dynamo.reset()
    model.zero_grad()
    found = step(copy.deepcopy(model))
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for a, b in zip(step(compiled), found, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(a, b)
    for a, b in zip(step(fresh), found, strict=True):
        assert torch.equal(a, b)
    value = model[0].weight.detach().clone()
    unbound_weights_(model)
    assert type(model[0].weight) is nn.Parameter and torch.equal(model[0].weight, value)
    network().load_state_dict(plain_state_dict(model))


class Recurrent(nn.Module):
    """An LSTM and a head, as models of sequences are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.lstm(x)[0])
        return logits


@pytest.mark.filterwarnings("ignore:qtrain. outside the recipe")
@pytest.mark.parametrize("form", [weight_norm, bound_weights])
def test_a_recurrent_model_is_copied_after_a_forward(form: Any) -> None:
    model, x = form(Recurrent(), skip=["fc"]), torch.randn(2, 6, 3)
    want = model(x)  # with gradients: torch keeps the weights it made
    quantized = quantize(model, recipe="fp32")
    assert torch.equal(quantized(x), want)
    assert weight_norm(model, skip=["lstm"])(x).allclose(want)
    assert bound_weights(model, skip=["lstm"])(x).shape == want.shape
    trained = quantize(model)
    trained(x).sum().backward()
    assert summary(trained, x).outside == {}
    products = {f"lstm.{name}_l{k}" for name in ("ih", "hh") for k in range(2)}
    assert {row.layer for row in inspect(trained, x).rows} == {"fc", *products}
    for one in (model, quantized):  # both still train their own weights, through g or rho and v
        one.zero_grad()
        one(x).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), quantized.parameters(), strict=True):
        assert a.grad is not None and a.grad.abs().sum() > 0, name
        assert b.grad is not None and a is not b and torch.equal(a.grad, b.grad)
    with torch.no_grad():
        for parameter in quantized.lstm.parameters():
            parameter.add_(0.1)
    assert torch.equal(model(x), want) and not quantized(x).allclose(want)


def test_a_weight_that_is_assigned_is_taken_whole_or_as_directions() -> None:
    torch.manual_seed(0)
    w = torch.randn(7, 5)
    free, bounded = weight_norm(nn.Linear(5, 7)), bound_weights(nn.Linear(5, 7))
    rho = bounded.weight[0].detach().norm()
    free.weight = w
    bounded.weight = w
    torch.testing.assert_close(free.weight.detach(), w)
    torch.testing.assert_close(bounded.weight.detach(), rho * nn.functional.normalize(w))


def test_a_frozen_weight_has_a_frozen_norm() -> None:
    layer = nn.Linear(5, 7).requires_grad_(False)
    assert not any(p.requires_grad for p in weight_norm(layer).parameters())


def test_what_sees_weights_sees_v_and_refuses_parametrizations_of_several_tensors() -> None:
    ours = weight_norm(nn.Linear(5, 7))
    norms = channel_norms(ours)
    assert list(norms) == ["weight"]
    CorrectedSteps(torch.optim.SGD(ours.parameters(), lr=0.1), ours, norms)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for ask in (channel_norms, lambda model: CorrectedSteps(optimizer, model, norms)):
        with pytest.raises(ValueError, match=r"weight: its parametrization has several.*qtrain\."):
            ask(theirs)
