"""topk with smoothing: what a batch-norm remembers of the batch before."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qtrain import Arithmetic, NormRecipe, load_recipe, quantize, recipes, save_recipe, set_recipe
from qtrain.norms.deviations import topk
from quantizers import fp32

TOP10 = topk(10, "code", smoothing=0.75)
N, C = 6, 3


def batch(seed: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn((N, C, 4, 4), generator=made).double() * (seed + 1) + 0.3


def model_of(deviation: Any = TOP10, **more: Any) -> nn.Sequential:
    net = nn.Sequential(nn.BatchNorm2d(C, eps=1e-5))
    recipe = NormRecipe(deviation=deviation, **more)
    made = quantize(net.double(), recipe="fp32", norm=recipe)
    assert isinstance(made, nn.Sequential)
    return made


class Top10:
    """In numpy float64, as the authors' class defines it: its memory has the constant in it."""

    def __init__(self, k: int = 10, beta: float = 0.75) -> None:
        self.memory: Any = np.zeros(C)
        self.k, self.beta = k, beta

    def __call__(self, x: Any, grad: Any) -> tuple[Any, Any]:
        rows = x.transpose(1, 0, 2, 3).reshape(C, -1)
        n = rows.shape[1]
        constant = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
        c = rows - rows.mean(1, keepdims=True)
        at = np.argsort(-np.abs(c), axis=1, kind="stable")[:, : self.k]
        top = np.take_along_axis(c, at, 1)
        sigma = constant * (self.beta * self.memory + (1 - self.beta) * np.abs(top).mean(1))
        self.memory = sigma
        divisor = (sigma + 1e-5)[:, None]
        y = c / divisor
        g = grad.transpose(1, 0, 2, 3).reshape(C, -1)
        slope = np.zeros_like(c)
        np.put_along_axis(slope, at, np.sign(top) * constant * (1 - self.beta) / self.k, 1)
        slope -= slope.mean(1, keepdims=True)  # through the mean
        back = (g - g.mean(1, keepdims=True)) / divisor
        back -= (g * y).sum(1, keepdims=True) / divisor * slope
        return self._image(y), self._image(back)

    @staticmethod
    def _image(rows: Any) -> Any:
        return rows.reshape(C, N, 4, 4).transpose(1, 0, 2, 3)


@pytest.mark.parametrize("k", [1, 10])
def test_four_batches_forward_and_backward(k: int) -> None:
    model, theirs = model_of(topk(k, "code", smoothing=0.75)), Top10(k)
    for step in range(4):
        x, grad = batch(step).requires_grad_(), batch(step + 10)
        output = model(x)
        output.backward(grad)
        wanted, back = theirs(x.detach().numpy(), grad.numpy())
        assert x.grad is not None
        np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x.grad.numpy(), back, rtol=1e-5, atol=1e-6)
        kept = model[0].state.norm_deviation_sigma
        np.testing.assert_allclose(kept.numpy(), theirs.memory, rtol=1e-6)


def test_it_settles_where_the_docstring_says() -> None:
    model, plain = model_of(), model_of(topk(10, "code"))
    x = batch(0)
    for _ in range(60):
        model(x)
    plain(x)
    constant = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(N * 16))
    rows = x.transpose(0, 1).flatten(1)
    alone = (rows - rows.mean(1, keepdim=True)).abs().topk(10, 1).values.mean(1) * constant
    want = alone * 0.25 / (1 - 0.75 * constant)
    torch.testing.assert_close(model[0].state.norm_deviation_sigma.double(), want)
    n = 256 * 56 * 56  # a layer of the paper's
    constant = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
    assert 0.25 / (1 - 0.75 * constant) == pytest.approx(1 / 3, abs=0.02)


def test_evaluation_and_frozen_batches_leave_the_memory() -> None:
    model = model_of()
    for step in range(3):
        model(batch(step))
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with torch.no_grad():
        model(batch(5))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(model[0].running_var, torch.ones(C).double())


def test_recomputation_moves_it_once() -> None:
    plain, again = model_of(), model_of()
    for step in range(3):
        x, y = batch(step).requires_grad_(), batch(step).requires_grad_()
        plain(x).square().sum().backward()
        checkpoint(again, y, use_reentrant=False).square().sum().backward()
        assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
    for a, b in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)


def test_it_is_saved_and_resumed() -> None:
    model = model_of()
    model(batch(0))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = model_of()
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh(batch(1)), model(batch(1)))
    other = model_of(topk(10, "code"))
    assert not any("deviation" in name for name, _ in other.named_buffers())


def test_a_relu_behind_it_and_an_arithmetic_take_it_too() -> None:
    theirs = [Top10(), Top10()]
    net = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()).double()
    fused = quantize(net, recipe="fp32", norm=NormRecipe(deviation=TOP10))
    wide = model_of(TOP10, arithmetic=Arithmetic(format=fp32, accumulator=fp32))
    for step in range(3):
        x = batch(step)
        wanted = [one(x.numpy(), x.numpy())[0] for one in theirs]
        np.testing.assert_allclose(
            fused(x).detach().numpy(), np.maximum(wanted[0], 0), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(wide(x).detach().numpy(), wanted[1], rtol=1e-3, atol=1e-4)


def test_a_switch_begins_it_anew_and_the_same_recipe_keeps_it() -> None:
    model = model_of()
    recipe = recipes.fp32()
    model(batch(0))
    kept = model[0].state.norm_deviation_sigma.clone()
    set_recipe(model, recipe, norm=NormRecipe(deviation=TOP10))
    assert torch.equal(model[0].state.norm_deviation_sigma, kept)
    set_recipe(model, recipe, norm="l1")
    assert not hasattr(model[0].state, "norm_deviation_sigma")


def test_without_smoothing_every_bit_is_what_it_was() -> None:
    a, b = model_of(topk(10, "code")), model_of(topk(10, "code", smoothing=0))
    for step in range(2):
        assert torch.equal(a(batch(step)), b(batch(step)))
    assert topk(10) == topk(10, smoothing=0) != topk(10, smoothing=0.5)
    assert str(TOP10) == "topk(10, code, smoothing=0.75)" and str(topk(10)) == "topk(10, exact)"


@pytest.mark.parametrize("net", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 4)], ids=str)
def test_norms_of_rows_have_no_batch_before(net: nn.Module) -> None:
    model = nn.Sequential(net, nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match=r"topk\(10, code, smoothing=0.75\) remembers channels"):
        found = quantize(model, recipe="fp32", norm=NormRecipe(deviation=TOP10))
    assert type(found[0]) is type(net)


def test_recipes_with_it_come_back_from_a_file(tmp_path: Any) -> None:
    recipe = replace(recipes.fp32(), name="top10", norm=NormRecipe(deviation=TOP10))
    assert load_recipe(save_recipe(recipe, tmp_path / "a.yaml")) == recipe


@pytest.mark.parametrize("bad", [1, 1.5, -0.1, math.nan])
def test_bad_smoothing(bad: float) -> None:
    with pytest.raises(ValueError, match=r"topk\.smoothing: got"):
        topk(smoothing=bad)
    with pytest.raises(TypeError, match=r"topk\.smoothing: got 'half'"):
        topk(smoothing="half")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_compiled() -> None:
    plain, other = model_of(), model_of()
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager")
    for step in range(3):
        x, y = batch(step).requires_grad_(), batch(step).requires_grad_()
        a, b = plain(x), compiled(y)
        torch.testing.assert_close(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(
        plain[0].state.norm_deviation_sigma, other[0].state.norm_deviation_sigma
    )
