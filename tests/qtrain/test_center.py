"""Means that are taken off a product's operands and given back to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qtrain import (
    Center,
    Forward,
    GradInput,
    GradWeight,
    Matmul,
    Recipe,
    center,
    hadamard,
    load_recipe,
    quantize,
    recipes,
    save_recipe,
)
from quantizers import (
    OFF,
    Quantizer,
    Scale,
    blocks,
    e2m1,
    e4m3,
    e8m0,
    ema,
    fp32,
    int8,
    per_axis,
    per_tensor,
    stochastic,
)

SAME = Quantizer(format=fp32, range=None)  # what is quantized stays what it is
INT = Quantizer(format=int8)
MX = Quantizer(format=e2m1, granularity=blocks(4), scale=Scale(e8m0, rule="rceil"))
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 10), (7, 6)),
    "tokens": (lambda: nn.Linear(6, 10, bias=False), (2, 5, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), (3, 4, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 2), (2, 3, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (2, 4, 3, 4)),
}
PAIRS = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
CHOICES = [
    (kind, chosen)
    for kind, (a, b) in PAIRS.items()
    for chosen in ((a,), (b,), (a, b))
]  # fmt: skip


def normal(*shape: int, seed: int = 0, offset: float = 3.0) -> Tensor:
    """With an offset of each feature's own."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=drawn)
    features = [1] * len(shape)
    features[1 if len(shape) > 3 else -1] = shape[1 if len(shape) > 3 else -1]
    return x + offset * torch.randn(features, generator=drawn)


def of(q: Any, **transforms: Any) -> Recipe:
    return Recipe(
        name="centered",
        forward=Forward(input=q, weight=q, transform=transforms.get("forward")),
        grad_input=GradInput(grad_output=q, transform=transforms.get("grad_input")),
        grad_weight=GradWeight(grad_output=q, transform=transforms.get("grad_weight")),
    )


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(normal(*output.shape, seed=5))
    found = [output.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return [g.clone() for g in found if g is not None]


@pytest.mark.parametrize(("kind", "chosen"), CHOICES, ids=lambda v: str(v))
@pytest.mark.parametrize(
    ("name", "rotation"),
    [*((name, None) for name in LAYERS), ("tokens", hadamard(4)), ("conv", hadamard(4))],
    ids=str,
)
def test_without_quantizers_the_product_is_what_it_was(
    name: str, kind: str, chosen: tuple[str, ...], rotation: Any
) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), normal(*shape)
    transform = center(*chosen, then=rotation)
    found = run(quantize(layer, recipe=of(SAME, **{kind: transform})), x)
    for own, torchs in zip(found, run(layer, x), strict=True):
        assert float((own - torchs).norm()) <= 1e-6 * float(torchs.norm())


@pytest.mark.parametrize(("kind", "chosen"), CHOICES, ids=lambda v: str(v))
def test_products_of_matrices_too(kind: str, chosen: tuple[str, ...]) -> None:
    a, b = normal(2, 5, 8).requires_grad_(), normal(2, 8, 6, seed=1).requires_grad_()
    grad = normal(2, 5, 6, seed=2)
    quantize(Matmul(), recipe=of(SAME, **{kind: center(*chosen)}))(a, b).backward(grad)
    assert a.grad is not None and b.grad is not None
    for own, torchs in ((a.grad, grad @ b.detach().mT), (b.grad, a.detach().mT @ grad)):
        assert float((own - torchs).norm()) <= 1e-6 * float(torchs.norm())


def mean(x: Tensor) -> Tensor:
    """Over the rows of a matrix, written out: fp64, rounded to fp32."""
    total = torch.tensor([sum(map(float, column)) for column in x.T], dtype=torch.float64)
    return (total / len(x)).float()


@pytest.mark.parametrize("both", [False, True])
def test_the_bits_of_a_linear_layer_are_these(both: bool) -> None:
    """Integer sums are exact, so that every rounding is known."""
    layer, x, g = nn.Linear(6, 10, bias=False), normal(8, 6), normal(8, 10, seed=5)
    names = ("grad_output", "input") if both else ("grad_output",)
    recipe = of(
        INT, forward=center("input"), grad_input=center("grad_output"), grad_weight=center(*names)
    )
    found = run(quantize(layer, recipe=recipe), x)
    w = layer.weight.detach()
    mx, mg = mean(x), mean(g)

    def times(a: Tensor, b: Tensor) -> Tensor:
        """Rows of a with rows of b, quantized."""
        p, q = INT(a), INT(b)
        assert p.scale is not None and q.scale is not None
        return (p.elements.double() @ q.elements.double().T).float() * (p.scale * q.scale)

    output = times(x - mx, w) + (mx.double() @ w.double().T).float()
    grad_input = times(g - mg, w.T) + (mg.double() @ w.double()).float()
    taken = x - mx if both else x
    given = torch.outer(mg.double(), x.double().sum(0))
    if both:
        given = given + torch.outer((g - mg).double().sum(0), mx.double())
    grad_weight = times((g - mg).T, taken.T) + given.float()
    for own, expected in zip(found, (output, grad_input, grad_weight), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("shape", [(10, 6), (2, 5, 6), (1, 2, 5, 6)])
@pytest.mark.parametrize("quantizer", [INT, MX, replace(MX, rounding=stochastic())], ids=str)
def test_any_leading_axes_are_tokens(shape: tuple[int, ...], quantizer: Any) -> None:
    x = normal(10, 6)
    layer = nn.Linear(6, 10)
    recipe = of(
        quantizer,
        forward=center("input"),
        grad_weight=center("grad_output", "input", then=hadamard(4, "step")),
    )  # fmt: skip
    flat = run(quantize(layer, recipe=recipe), x)
    g = normal(10, 10, seed=5)
    again = quantize(layer, recipe=recipe)
    deep = x.view(shape).clone().requires_grad_()
    output: Tensor = again(deep)
    output.backward(g.view(*shape[:-1], 10))
    assert deep.grad is not None
    assert torch.equal(output.flatten(0, -2), flat[0])
    assert torch.equal(deep.grad.flatten(0, -2), flat[1])
    assert torch.equal(again.weight.grad, flat[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", [per_tensor, blocks(None), blocks(4)], ids=str)
def test_an_offset_that_all_tokens_share_costs_nothing(granularity: Any) -> None:
    """SageAttention's case: keys with a large offset, scores in 4 bits."""
    coarse = Quantizer(format="int4", granularity=granularity)
    forward = Forward(input=coarse, weight=coarse)
    q, k = normal(2, 16, 8, offset=0.0), normal(2, 16, 8, seed=1, offset=0.0)
    far = k + 100 * torch.arange(8.0)
    errors = []
    for keys, transform in ((k, None), (far, None), (far, center("weight"))):
        recipe = Recipe(name="x", forward=replace(forward, transform=transform))
        found = quantize(Matmul(), recipe=recipe)(q, keys.mT)
        errors.append(float((found - q.double() @ keys.double().mT).norm()))
    assert errors[2] < errors[0] * 1.2 < errors[1] / 10


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_repeats_it(reentrant: bool) -> None:
    noisy = Quantizer(format="int4", rounding=stochastic(), range=ema())
    recipe = of(
        noisy,
        forward=center("input", then=hadamard(4, "step")), grad_weight=center("input"),
    )  # fmt: skip
    layer = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10))
    plain, again = quantize(layer, recipe=recipe), quantize(layer, recipe=recipe)
    for _ in range(2):
        found = run(plain, normal(7, 6))
        x = normal(7, 6).requires_grad_()
        checkpoint(again, x, use_reentrant=reentrant).backward(normal(7, 10, seed=5))
        assert x.grad is not None and torch.equal(x.grad, found[1])
        for own, grad in zip(again.parameters(), found[2:], strict=True):
            assert own.grad is not None and torch.equal(own.grad, grad)
        again.zero_grad()
    for (name, a), (_, b) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_off_stays_torchs_and_an_empty_batch_has_no_mean() -> None:
    layer, x = nn.Linear(6, 10), normal(7, 6)
    recipe = of(OFF, forward=center("input"), grad_weight=center("grad_output"))
    assert recipe.products_off
    for own, torchs in zip(run(quantize(layer, recipe=recipe), x), run(layer, x), strict=True):
        assert torch.equal(own, torchs)
    recipe = of(INT, forward=center("input"), grad_weight=center("grad_output", "input"))
    empty = run(quantize(layer, recipe=recipe), x[:0])
    assert empty[0].shape == (0, 10) and not any(g.any() for g in empty[2:])


def test_a_product_with_a_mean_of_its_own_reuses_nothing() -> None:
    recipe = of(INT, forward=center("input"))
    assert not recipe.reuses("grad_weight", "input") and not recipe.reuses("grad_input", "weight")
    layer, x = nn.Linear(6, 10), normal(7, 6)
    plain, found = run(quantize(layer, recipe=of(INT)), x), run(quantize(layer, recipe=recipe), x)
    assert not torch.equal(found[0], plain[0])
    for own, other in zip(found[1:], plain[1:], strict=True):  # as without it
        assert torch.equal(own, other)


def test_codes_behind_a_norm_are_not_taken_for_the_input() -> None:
    from qtrain.layers import fused

    layer, norm, relu = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4), nn.ReLU()
    recipe = replace(
        recipes.int8(), forward=replace(recipes.int8().forward, transform=center("input"))
    )
    model = quantize(nn.Sequential(norm, relu, layer), recipe=recipe, norm="range")
    again = quantize(nn.Sequential(norm, relu, layer), recipe=recipe, norm="range")
    x = normal(3, 4, 5, 6)
    assert torch.equal(
        fused.norm_relu_layer(model[0], model[1], model[2], x), again[2](again[1](again[0](x)))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: center(), "center: got .*need names of operands"),
        (lambda: center("input", "input"), "center: got"),
        (lambda: center("bias"), "center: operand: got 'bias'"),
        (lambda: center("input", then=4), r"center: then: got 4, need hadamard"),  # type: ignore[arg-type]
        (lambda: Forward(transform=center("grad_output")), r"forward\.transform: center got"),
        (lambda: GradInput(transform="center"), r"grad_input\.transform: got 'center', need hada"),  # type: ignore[arg-type]
        (
            lambda: of(replace(INT, straight_through="inclusive"), forward=center("input")),
            r"forward\.input: .* has a backward of its own, and a transform",
        ),
        (
            lambda: of(
                replace(INT, granularity=per_axis(0)), forward=center("input", then=hadamard(4))
            ),
            "names axes of the operand, which hadamard 4, fixed signs mixes",
        ),
        (
            lambda: replace(
                of(INT, forward=center("input")),
                grad_weight=GradWeight(grad_output=INT, input=INT, source="forward"),
            ),
            r"grad_weight\.source: got 'forward'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_words_and_files(tmp_path: Path) -> None:
    transform = center("grad_output", "input", then=hadamard(8, "step"))
    assert transform == Center(("grad_output", "input"), hadamard(8, "step"))
    recipe = of(MX, grad_weight=transform, forward=center("input"))
    assert "forward after mean of input taken off" in str(recipe)
    assert "mean of grad_output and input taken off, hadamard 8, step signs" in str(recipe)
    assert recipe.noisy and load_recipe(save_recipe(recipe, tmp_path / "own.yaml")) == recipe


def test_e4m3_gradients_of_all_kinds_train() -> None:
    q = Quantizer(format=e4m3, granularity=blocks(4), scale=Scale(e8m0, rule="rceil"))
    recipe = of(
        q, forward=center("input"), grad_input=center("grad_output"),
        grad_weight=center("grad_output", "input"),
    )  # fmt: skip
    layer, x = nn.Conv2d(4, 6, 3, padding=1), normal(3, 4, 5, 6)
    for own, torchs in zip(run(quantize(layer, recipe=recipe), x), run(layer, x), strict=True):
        assert float((own - torchs).norm()) < 0.06 * float(torchs.norm())
