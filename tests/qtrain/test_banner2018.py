"""banner2018 in its three variants, step by step in numpy float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtrain import Recipe, inspect, load_recipe, quantize, recipes, save_recipe
from quantizers import OFF, Quantizer, RealOffset, nearest_even, stochastic

VARIANTS = ("paper", "code", "convnet")
N = 48  # 16 chunks of three
#: fp32 against fp64, sums of 48
NEAR = {"rtol": 2e-5, "atol": 2e-6}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inner(quantizer: Any) -> Any:
    """The Quantizer, with an exact zero or without."""
    return quantizer.of if isinstance(quantizer, RealOffset) else quantizer


def nearest(recipe: Recipe) -> Recipe:
    """The recipe without noise."""

    def own(quantizer: Any) -> Any:
        if quantizer == OFF:
            return quantizer
        made = replace(inner(quantizer), rounding=nearest_even)
        return RealOffset(made) if isinstance(quantizer, RealOffset) else made

    norm: Any = recipe.norm
    return replace(
        recipe,
        forward=replace(recipe.forward, input=own(recipe.forward.input)),
        grad_input=replace(recipe.grad_input, grad_output=own(recipe.grad_input.grad_output)),
        grad_weight=replace(recipe.grad_weight, grad_output=own(recipe.grad_weight.grad_output)),
        norm=replace(norm, input=own(norm.input), grad_output=own(norm.grad_output)),
        with_bits=None,
    )


def affine(x: Any, variant: str, low: Any = None, high: Any = None) -> Any:
    """8 bits from low to high, by default the extremes: 0 is a level in the paper alone."""
    low, high = (x.min() if low is None else low), (x.max() if high is None else high)
    if variant != "paper":
        step = (high - low) / 255
        off = step == 0
        return low + step * np.clip(np.rint((x - low) / np.where(off, 1, step)), 0, 255)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    step = (high - low) / 255
    step = np.where(step == 0, 1, step)
    zero = np.clip(-np.rint(low / step), 0, 255)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def of_samples(x: Any, variant: str) -> Any:
    """Clipped to the mean of the samples' extremes."""
    flat = x.reshape(len(x), -1)
    return affine(x, variant, flat.min(1).mean(), flat.max(1).mean())


def symmetric16(x: Any) -> Any:
    step = np.abs(x).max() / 32767
    return np.rint(x / step) * step


class Norm:
    """Range batch-norm of (N, C), forward and backward."""

    def __init__(self, x: Any, weight: Any, bias: Any, variant: str) -> None:
        root = math.sqrt(2 * math.log(len(x) if variant == "paper" else len(x) // 16))
        if variant == "paper":
            chunks, constant = 1, 1 / root
        else:
            chunks = 16
            constant = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / root
        x = of_samples(x, variant)
        if variant != "convnet":
            weight, bias = affine(weight, variant), affine(bias, variant)
        parts = x.reshape(chunks, -1, x.shape[1])
        sigma = constant * (parts.max(1) - parts.min(1)).mean(0)
        self.slope = np.zeros_like(parts)
        for part, channel in np.ndindex(chunks, x.shape[1]):
            own = parts[part, :, channel]
            self.slope[part, own.argmax(), channel] += constant / chunks
            self.slope[part, own.argmin(), channel] -= constant / chunks
        self.slope = self.slope.reshape(x.shape)
        self.divisor = sigma + 1e-5
        self.y = (x - x.mean(0)) / self.divisor
        self.weight, self.variant = weight, variant
        self.output = self.y * weight + bias

    def backward(self, grad: Any) -> tuple[Any, Any, Any]:
        grad = affine(grad, self.variant)  # of the extremes, in all three
        h = grad * self.weight / self.divisor
        along = (h * self.y).sum(0)
        return h - h.mean(0) - along * self.slope, (grad * self.y).sum(0), grad.sum(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_norm_forward_and_backward(variant: Any) -> None:
    model = quantize(
        nn.Sequential(nn.BatchNorm1d(5)), recipe=nearest(recipes.banner2018(variant=variant))
    )
    with torch.no_grad():
        model[0].weight.copy_(normal(5, seed=1) + 1)
        model[0].bias.copy_(normal(5, seed=2))
    x, grad = normal(N, 5, seed=3).requires_grad_(), normal(N, 5, seed=4)
    output = model(x)
    output.backward(grad)
    parameters = (p.detach().double().numpy() for p in (model[0].weight, model[0].bias))
    norm = Norm(x.detach().double().numpy(), *parameters, variant)
    grads = norm.backward(grad.double().numpy())
    found = output, x.grad, model[0].weight.grad, model[0].bias.grad
    for ours, theirs in zip(found, (norm.output, *grads), strict=True):
        assert ours is not None
        np.testing.assert_allclose(ours.detach().double().numpy(), theirs, **NEAR)


@pytest.mark.parametrize("weights", [None, "tensor", "channel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layer_forward_and_backward(variant: Any, weights: Any) -> None:
    recipe = nearest(recipes.banner2018(variant=variant, weights=weights))
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(7, 6, bias=False)), recipe=recipe)
    x, grad = normal(N, 7, seed=3).requires_grad_(), normal(N, 6, seed=4)
    output = model(x)
    output.backward(grad)
    xq = of_samples(x.detach().double().numpy(), variant)
    w = model[0].weight.detach().double().numpy()
    if weights == "channel" or (weights is None and variant == "convnet"):
        wq = np.stack([affine(row, variant) for row in w])
    else:
        wq = affine(w, variant)
    g = grad.double().numpy()
    back, codes = g, wq
    if variant == "paper" and weights == "channel":  # scales along the sum: quantized with them
        scale = (np.maximum(w.max(1), 0) - np.minimum(w.min(1), 0)) / 255
        back, codes = g * scale, wq / scale[:, None]
    wide = symmetric16(g) if variant == "paper" else g
    found = output, x.grad, model[0].weight.grad
    wanted = xq @ wq.T, affine(back, variant) @ codes, wide.T @ xq
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours is not None
        np.testing.assert_allclose(ours.detach().double().numpy(), theirs, **NEAR)


def test_which_variant_rounds_what_stochastically() -> None:
    for variant in VARIANTS:
        recipe = recipes.banner2018(variant=variant)  # type: ignore[arg-type]
        assert recipe.norm is not None
        inputs = inner(recipe.forward.input), inner(recipe.norm.input)
        assert {one.rounding == stochastic() for one in inputs} == {variant == "code"}
        gradients = inner(recipe.grad_input.grad_output), inner(recipe.norm.grad_output)
        assert all(one.rounding == stochastic() for one in gradients)
        weights = inner(recipe.forward.weight)
        assert weights.rounding == nearest_even
        assert str(weights.granularity) == (
            "per axis 0,1" if variant == "convnet" else "per tensor"
        )
        for one in (recipe.forward.input, recipe.grad_input.grad_output, recipe.norm.grad_output):
            assert isinstance(one, Quantizer if variant == "paper" else RealOffset)


def test_the_norms_gradient_is_noise_of_its_own_and_unbiased() -> None:
    model = quantize(nn.Sequential(nn.BatchNorm1d(3)), recipe="banner2018", seed=5)
    x, grad = normal(N, 3), normal(N, 3, seed=1)
    found = []
    for _ in range(200):
        model.zero_grad()
        model(x).backward(grad)
        found.append(model[0].bias.grad.clone())
    means = torch.stack(found)
    assert means.std(0).min() > 0  # other noise at every step
    error = (means.mean(0) - grad.sum(0)).abs()  # 5 sigma
    assert (error < 5 * means.std(0) / math.sqrt(200)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_keep_their_settings_at_other_widths_and_in_files(
    variant: Any, tmp_path: Any
) -> None:
    recipe = recipes.banner2018(variant=variant, weights="channel")
    assert recipe.at(4) == recipes.banner2018(4, variant=variant, weights="channel")
    assert inner(recipe.at(4).norm.grad_output).format.bits == 4  # type: ignore[union-attr]
    found = load_recipe(save_recipe(recipe, tmp_path / "a.yaml"))
    assert found == recipe and (found.source, found.leaves_out) == (
        recipe.source,
        recipe.leaves_out,
    )
    assert "Banner et al. 2018" in recipe.source
    assert ("biases" in recipe.leaves_out) is (variant != "paper")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_trains_and_is_inspected(variant: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = quantize(net, recipe=recipes.banner2018(variant=variant))
    x, labels = normal(24, 1, 4, 4), torch.arange(24) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    rows = inspect(model, x, labels).rows
    assert all(row.sqnr_db > 15 for row in rows if row.role in ("input", "weight"))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"variant: got 'poster'.*convnet"):
        recipes.banner2018(variant="poster")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights: got 'row'"):
        recipes.banner2018(weights="row")  # type: ignore[arg-type]
