"""Bounded weight norm with a learned g, whose own norm is held."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtrain import bound_weights, bound_weights_, quantize, unbound_weights_, weight_norm
from qtrain.weights.bounded import WeightNorm
from qtrain.weights.channels import Channels, weights

ORDERS = (1, 2, math.inf)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, groups=2),
        nn.Flatten(), nn.Linear(4 * 49, 5),
    )  # fmt: skip


def step(model: nn.Module, rate: float = 0.3) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    out = model(torch.randn(4, 3, 8, 8))
    out.square().mean().backward()
    found = [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    torch.optim.SGD(model.parameters(), lr=rate).step()
    return found


def size_of(weight: Tensor, channels: Channels, p: float) -> Tensor:
    return channels.norms(weight, p).norm()


@pytest.mark.parametrize("p", ORDERS)
def test_the_layers_norm_stays_and_its_channels_move(p: float) -> None:
    plain = network()
    model = bound_weights(plain, p, learned=True)
    for one, other in zip(weights(model).values(), weights(plain).values(), strict=True):
        torch.testing.assert_close(one.tensor, other.tensor)  # the same function at first
    for _ in range(3):
        step(model)
    for one, other in zip(weights(model).values(), weights(plain).values(), strict=True):
        torch.testing.assert_close(
            size_of(one.tensor, one.channels, p), size_of(other.tensor, other.channels, p)
        )
        moved = one.channels.norms(one.tensor, p) / other.channels.norms(other.tensor, p)
        assert moved.std() > 1e-4


def test_weight_and_gradients_are_those_of_the_definition() -> None:
    torch.manual_seed(2)
    norm = WeightNorm(nn.Parameter(torch.randn(4, 6, dtype=torch.float64)), learned=True)
    v = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        norm.g.mul_(torch.rand(4, 1) + 0.5)
    rho, g = float(norm.get_buffer("rho")), norm.g.detach().numpy()[:, 0]
    outer = torch.randn(4, 6, dtype=torch.float64)
    w = norm(v)
    w.backward(outer)
    own, grad = v.detach().numpy(), outer.numpy()
    unit = own / np.sqrt((own**2).sum(1, keepdims=True))
    whole = math.sqrt((g**2).sum())
    np.testing.assert_allclose(w.detach().numpy(), rho * (g / whole)[:, None] * unit, rtol=1e-12)
    along = (grad * unit).sum(1)  # of each channel
    want = rho / whole * (along - g * (along @ g) / whole**2)
    assert norm.g.grad is not None and v.grad is not None
    np.testing.assert_allclose(norm.g.grad.numpy()[:, 0], want, rtol=1e-10)
    assert (norm.g.grad * norm.g).sum().abs() < 1e-12  # nothing along g
    length = np.sqrt((own**2).sum(1, keepdims=True))
    back = (rho * g / whole)[:, None] / length * (grad - along[:, None] * unit)
    np.testing.assert_allclose(v.grad.numpy(), back, rtol=1e-10)


@pytest.mark.parametrize("p", ORDERS)
def test_autograd_agrees_with_differences(p: float) -> None:
    torch.manual_seed(3)
    start = nn.Parameter(torch.randn(4, 3, 2, dtype=torch.float64))
    norm = WeightNorm(start, p, Channels(2), learned=True)
    v = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, g: norm(v), (v, norm.g))


def test_rho_is_the_norm_of_the_channels_norms_of_the_start() -> None:
    layer = nn.Linear(5, 7)
    found = dict(bound_weights(layer, 1, learned=True).named_buffers())
    (name,) = found
    torch.testing.assert_close(found[name], layer.weight.detach().abs().sum(1).norm())
    assert name.endswith(".rho")
    text = str(bound_weights(layer, 1, learned=True))
    assert f"p=1, g, rho={float(found[name]):.4g}" in text
    assert "rho" not in str(weight_norm(layer)) and ", g" not in str(bound_weights(layer))
    assert not dict(weight_norm(layer).named_buffers())


def test_only_the_shares_of_g_count() -> None:
    one = bound_weights(network(), learned=True)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith(".g"):
                parameter.mul_(4)
    for a, b in zip(weights(one).values(), weights(other).values(), strict=True):
        torch.testing.assert_close(a.tensor, b.tensor)


def test_zeros_pass_no_gradient_and_poison_nothing() -> None:
    w = torch.randn(3, 4)
    w[1] = 0
    norm, v = WeightNorm(nn.Parameter(w), learned=True), w.clone().requires_grad_()
    norm(v).sum().backward()
    assert v.grad is not None and v.grad.isfinite().all() and norm.g.grad is not None
    assert norm.g.grad.isfinite().all() and not norm.g.grad[1].any()
    empty = WeightNorm(nn.Parameter(torch.zeros(3, 4)), learned=True)
    out = empty(w.requires_grad_())
    out.sum().backward()
    assert not out.any() and w.grad is not None and w.grad.isfinite().all()
    assert empty.g.grad is not None and not empty.g.grad.any()


def test_an_assigned_weight_gives_directions_and_shares() -> None:
    layer = bound_weights(nn.Linear(5, 7), learned=True)
    rho, w = layer.weight.detach().norm(), torch.randn(7, 5)
    layer.weight = w
    torch.testing.assert_close(layer.weight.detach(), w * (rho / w.norm()))


def test_bounding_and_quantizing_commute_and_it_is_saved_and_removed() -> None:
    one = quantize(bound_weights(network(), learned=True), seed=3)
    other = bound_weights_(quantize(network(), seed=3), learned=True)
    assert len(list(one.parameters())) == len(list(network().parameters())) + 3  # three g
    for a, b in zip(step(one), step(other), strict=True):
        assert torch.equal(a, b)
    fresh = quantize(bound_weights(network(), learned=True), seed=3)
    fresh.load_state_dict(one.state_dict())
    for a, b in zip(step(fresh), step(one), strict=True):
        assert torch.equal(a, b)
    value = one[0].weight.detach().clone()
    unbound_weights_(one)
    assert torch.equal(one[0].weight, value) and type(one[0].weight) is nn.Parameter


def test_learned_is_a_bool() -> None:
    with pytest.raises(TypeError, match="learned: got 1, need True or False"):
        bound_weights(nn.Linear(2, 2), learned=1)  # type: ignore[arg-type]
