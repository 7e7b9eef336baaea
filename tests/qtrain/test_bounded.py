"""Bounded weight norm, on every kind of weight, with everything else that touches a weight."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qtrain import bound_weights, bound_weights_, plain_state_dict, quantize, unbound_weights_
from qtrain.bounded import BoundedWeightNorm
from qtrain.channels import Channels, weights

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
    bound = BoundedWeightNorm(v.detach() * 2, p, Channels(groups))
    assert torch.autograd.gradcheck(bound, (v,))
    if p == 2 and not groups:
        (grad,) = torch.autograd.grad(bound(v).square().mul(torch.rand_like(v)).sum(), v)
        assert (grad * v).sum((1, 2)).abs().max() < 1e-12  # nothing along v


@pytest.mark.parametrize("p", ORDERS)
def test_a_channel_of_zeros_stays_one_and_poisons_nothing(p: float) -> None:
    v = torch.randn(3, 4)
    v[1] = 0
    v.requires_grad_()
    w = BoundedWeightNorm(v.detach(), p)(v)
    w.sum().backward()
    assert v.grad is not None and torch.isfinite(w).all() and torch.isfinite(v.grad).all()
    assert not w[1].any() and not v.grad[1].any() and v.grad[0].any()


def test_nan_is_passed_on() -> None:
    v = torch.ones(2, 3)
    v[0, 0] = torch.nan
    assert BoundedWeightNorm(torch.ones(2, 3))(v)[0].isnan().all()


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
    with pytest.raises(ValueError, match=r"skip: 'fc' matches no layer with a weight; those are 0"):
        bound_weights(network(), skip=["fc"])
    with pytest.raises(TypeError, match=r"skip: got '0', need a list"):
        bound_weights(network(), skip="0")
    with pytest.raises(ValueError, match=r"0\.weight is parametrized already"):
        bound_weights(bound_weights(network()))
    with pytest.raises(ValueError, match=r"no weight to bound"):
        bound_weights(nn.ReLU())
    model = bound_weights(network(), skip=["4"])
    assert parametrize.is_parametrized(model[0]) and not parametrize.is_parametrized(model[4])
