"""What a layer hands on under a recipe whose activation is a quantizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qtrain import Matmul, Recipe, cost, load_recipe, quantize, recipes, save_recipe, set_recipe
from qtrain.inspection.inspect import inspect
from quantizers import (
    OFF,
    FloatFormat,
    Quantizer,
    Scale,
    bf16,
    blocks,
    e4m3,
    e5m2,
    e8m0,
    ema,
    fp16,
    int8,
    per_axis,
    per_tensor,
    stochastic,
)

TILES = Quantizer(format="int8", granularity=blocks(4, 3))
MX = Quantizer(format=e4m3, granularity=blocks(4), scale=Scale(e8m0, rule="rceil"))
QUANTIZERS = {
    "tensor": Quantizer(format=e4m3),
    "channels": Quantizer(format="uint8", granularity=per_axis(1)),
    "tiles": TILES,
    "mx": MX,
    "two levels": Quantizer(format="e2m1", granularity=blocks(4), scale=Scale(e4m3, over=Scale())),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 10), (7, 6)),
    "tokens": (lambda: nn.Linear(6, 10), (2, 5, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
}


def recipe(activation: Any, **fields: Any) -> Recipe:
    return Recipe(name="handed", activation=activation, **fields)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(output: Tensor) -> Tensor:
    """Written out: a row of features for each index of the other axes, in C order."""
    if output.dim() <= 3 and output.shape[-1] == 10:
        return output.reshape(-1, 10)
    channels = [output[:, c].reshape(-1) for c in range(output.shape[1])]
    return torch.stack(channels, 1)


def run(layer: nn.Module, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(normal(*output.shape, seed=5) if grad is None else grad)
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    found = [output.detach(), *(g.clone() for g in grads if g is not None)]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_outputs_are_the_quantizers_values_and_gradients_pass(kind: str, name: str) -> None:
    make, shape = LAYERS[kind]
    layer, x, quantizer = make(), normal(*shape), QUANTIZERS[name]
    plain = run(layer, x)
    found = run(quantize(layer, recipe=recipe(quantizer)), x)
    if quantizer.granularity.of == "product":
        assert torch.equal(rows(found[0]), quantizer(rows(plain[0])).dequantize())
    else:
        assert torch.equal(found[0], quantizer(plain[0]).dequantize())
    assert not torch.equal(found[0], plain[0])
    for own, torchs in zip(found[1:], plain[1:], strict=True):
        assert torch.equal(own, torchs)


def test_a_product_of_matrices_hands_on_its_own_rows() -> None:
    a, b = normal(2, 5, 8), normal(2, 8, 6, seed=1)
    found = quantize(Matmul(), recipe=recipe(TILES))(a, b)
    assert torch.equal(found, TILES(a @ b).dequantize())


@pytest.mark.parametrize("fmt", [bf16, fp16, e4m3, e5m2, FloatFormat(3, 4)], ids=str)
def test_a_format_is_that_quantizer_without_a_scale(fmt: FloatFormat) -> None:
    layer, x = nn.Linear(6, 10), normal(7, 6) * 300
    first = run(quantize(layer, recipe=recipe(fmt)), x)
    second = run(quantize(layer, recipe=recipe(Quantizer(format=fmt, range=None))), x)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("granularity", [per_tensor, blocks(4)], ids=str)
@pytest.mark.parametrize("clip", ["inclusive", "strict"])
def test_the_gradient_stops_where_the_quantizer_says(granularity: Any, clip: Any) -> None:
    quantizer = Quantizer(
        format="e2m1", granularity=granularity, straight_through=clip, scale=Scale(top=12.0)
    )
    layer, x, grad = nn.Linear(6, 10), normal(7, 6), normal(7, 10, seed=3)
    output = layer(x).detach()
    passed = quantizer.backward(grad, output, None)
    assert 0 < int((passed == 0).sum()) < grad.numel()
    found = run(quantize(layer, recipe=recipe(quantizer)), x, grad)
    for own, torchs in zip(found[1:], run(layer, x, passed)[1:], strict=True):
        assert torch.equal(own, torchs)


def test_noise_is_its_own_and_of_each_step() -> None:
    quantizer = Quantizer(format="int4", rounding=stochastic(), granularity=blocks(8))
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(8))
    own = replace(recipes.fp32(), name="x", activation=quantizer)
    both = replace(own, forward=replace(own.forward, input=quantizer))
    x = normal(64, 8)
    model = quantize(layer, recipe=own)
    first, second = model(x).detach(), model(x).detach()
    assert not torch.equal(first, second)
    steps: Any = quantize(layer, recipe=own)
    assert torch.equal(steps(x), first)
    # the same tensor, quantized as an operand and as an output: noise of their own
    operand = quantize(layer, recipe=replace(both, activation=None))(x)
    assert not torch.equal(operand, first)
    mean = torch.stack([model(x).detach() for _ in range(400)]).mean(0)
    step = x.abs().amax(1, keepdim=True) / 7
    assert float(((mean - x) / step).abs().max()) < 0.5 * 5 / 20  # 5 standard errors


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_repeats_noise_and_moves_no_range_twice(reentrant: bool) -> None:
    quantizer = Quantizer(format="int8", rounding=stochastic(), range=ema(), granularity=per_tensor)
    layer = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10))
    x = normal(7, 6)
    plain: Any = quantize(layer, recipe=recipe(quantizer))
    again: Any = quantize(layer, recipe=recipe(quantizer))
    for _ in range(2):
        found = run(plain, x)
        x_in = x.clone().requires_grad_()
        output = checkpoint(again, x_in, use_reentrant=reentrant)
        output.backward(normal(7, 10, seed=5))
        assert torch.equal(output, found[0]) and torch.equal(x_in.grad, found[1])
        again.zero_grad()
    for (name, a), (_, b) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert int(plain[0].product.forward_output_steps) == 2


def test_a_memory_is_the_layers_state() -> None:
    quantizer = Quantizer(format="int8", range=ema())
    model: Any = quantize(nn.Linear(6, 10), recipe=recipe(quantizer))
    for seed in range(3):
        model(normal(7, 6, seed=seed))
    other: Any = quantize(nn.Linear(6, 10), recipe=recipe(quantizer))
    other.load_state_dict(model.state_dict())
    x = normal(7, 6, seed=9) * 3
    model.eval(), other.eval()
    high = model.product.forward_output_high.clone()
    assert torch.equal(model(x), other(x)) and torch.equal(model.product.forward_output_high, high)
    set_recipe(model, recipe(quantizer, forward=recipes.int8().forward))
    assert torch.equal(model.product.forward_output_high, high)
    set_recipe(model, "fp32")
    assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))


class Halves:
    """x in steps of a half: a quantizer of one's own, which passes half the gradient."""

    def __call__(self, x: Any, *, state: Any = None, key: Any = None, training: Any = True) -> Any:
        return (
            Quantizer(format=int8)(x)
            ._replace(scale=torch.full((1, 1), 0.5), block=())
            ._replace(elements=(x * 2).round().to(torch.int8))
        )

    def backward(self, grad: Any, x: Any, state: Any) -> Any:
        return grad / 2


def test_a_quantizer_of_ones_own() -> None:
    layer, x, grad = nn.Linear(6, 10), normal(7, 6), normal(7, 10, seed=1)
    found = run(quantize(layer, recipe=recipe(Halves())), x, grad)
    assert torch.equal(found[0], (layer(x) * 2).round() / 2)
    assert torch.equal(found[1], run(layer, x, grad / 2)[1])


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("fp17", "activation: unknown format 'fp17'; did you mean"),
        ("int8", r"activation: got IntFormat.*: activation=Quantizer\(format='int8'\)"),
        ("nf4", r"activation: got TableFormat.*: activation=Quantizer\(format='nf4'\)"),
        (3, "activation: got 3, need a quantizer"),
        (per_tensor, "activation: got Granularity"),
    ],
)
def test_what_is_no_activation_is_refused(activation: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        recipe(activation)


def test_names_files_and_refusals() -> None:
    assert recipe(OFF) == recipe(None) and recipe(OFF).products_off
    for name, fmt in (("bf16", bf16), ("e4m3", e4m3)):
        assert recipe(name) == recipe(fmt) and recipe(name).quantizes_output is None
    assert recipe("fp16", narrow=True).stored(torch.float32) is torch.float16
    with pytest.raises(ValueError, match=r"narrow: activation is int8, blocks of 4"):
        recipe(TILES, narrow=True)
    with pytest.raises(ValueError, match=r"norm: got .*give norm=NormRecipe"):
        quantize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), recipe=recipe(TILES), norm="l1")
    with pytest.raises(ValueError, match=r"output of forward: granularity names axis 5"):
        quantize(nn.Linear(4, 4), recipe=recipe(Quantizer(format=int8, granularity=per_axis(5))))(
            normal(2, 4)
        )


def test_a_file_by_hand(tmp_path: Path) -> None:
    lines = ["name: handed", "activation:", "  format: int8", "  granularity: per_tensor"]
    path = tmp_path / "own.yaml"
    path.write_text("\n".join(lines))
    assert load_recipe(path) == recipe(Quantizer(format=int8))
    lines = ["name: handed", "activation:", "  FloatFormat:", "    exponent: 3", "    mantissa: 4"]
    path.write_text("\n".join(lines))
    assert load_recipe(path) == recipe(FloatFormat(3, 4))
    path.write_text("name: handed\nactivation: bf16\n")
    assert load_recipe(path) == recipe("bf16")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_file_keeps_it(name: str, tmp_path: Path) -> None:
    own = recipe(QUANTIZERS[name])
    assert load_recipe(save_recipe(own, tmp_path / "own.yaml")) == own
    assert "output" in str(own) and str(QUANTIZERS[name]) in str(own)


def test_cost_counts_elements_and_scales() -> None:
    x = normal(8, 16)
    plain = cost(quantize(nn.Linear(16, 12), recipe=recipe(Quantizer(format=e4m3, range=None))), x)
    tiles = replace(TILES, granularity=blocks(4, 4))
    found = cost(quantize(nn.Linear(16, 12), recipe=recipe(tiles)), x)
    moved = [r.rows[0].moved_bytes for r in (plain, found)]
    assert moved[1] - moved[0] == 2 * 3 * 4  # 2 x 3 fp32 scales; both 8 bits an element


def test_inspect_sees_the_rounded_output() -> None:
    coarse = Quantizer(format="int2", granularity=blocks(4))
    x = normal(64, 16)
    rows = inspect(quantize(nn.Linear(16, 12), recipe=recipe(coarse)), x).rows
    (output,) = (row for row in rows if row.role == "output")
    assert 0 < output.sqnr_db < 15


def test_jetfire_hands_on_int8_blocks() -> None:
    recipe = recipes.jetfire()
    assert recipe.activation == Quantizer(format=int8, granularity=blocks(32, 32))
    model, x = quantize(nn.Linear(40, 70), recipe=recipe), normal(50, 40)
    plain = quantize(nn.Linear(40, 70), recipe=replace(recipe, activation=None))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), recipe.activation(plain(x)).dequantize())  # type: ignore[operator]
