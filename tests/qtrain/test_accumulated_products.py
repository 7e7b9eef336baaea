"""Products of layers by an accumulator are `quantizers.accumulate` of their operands' elements.

The matrices of a convolution come from torch's own convolution of unit images with unit kernels.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import block_cases
import pytest
import torch
from block_cases import FP4, INT8, MX, Kept, convolved, normal, unit_maps
from torch import Tensor, nn

import qtrain.products.accumulated.product as module
from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Matmul,
    Monitor,
    NormRecipe,
    Recipe,
    TrainConfig,
    cost,
    diagnose,
    hadamard,
    inspect,
    quantize,
    recipes,
    set_recipe,
    summary,
    train,
)  # fmt: skip
from qtrain.products.blockwise.unfolding import Unfolded
from qtrain.products.module import products_of
from qtrain.products.operations import BatchedMatmul
from qtrain.products.probe import Computed, Probe
from qtrain.recipe import OPERANDS
from qtrain.training.nonfinite import NonFiniteError, first_nonfinite
from quantizers import (
    OFF,
    FloatFormat,
    Quantizer,
    accumulate,
    accumulators,
    bf16,
    e4m3,
    e5m2,
    fp16,
    int8,
    kernels,
    minmax,
    per_channel,
    stochastic,
    toward_zero,
    uint8,
)

E4M3, E5M2, WHOLE = Quantizer(format=e4m3), Quantizer(format=e5m2), Quantizer(format=int8)
WEIGHT = Quantizer(format=e4m3, granularity=per_channel())
SHIFTED = Quantizer(format=uint8, range=minmax)
NARROW = accumulators.sequential(FloatFormat(7, 4), chunk=7)
H100 = accumulators.get("H100", "e4m3")
SATURATED = accumulators.integer(17, overflow="saturate")


def by(x: Any, w: Any, g: Any, *units: Any, **more: Any) -> Recipe:
    one, two, three = units * 3 if len(units) == 1 else units
    return Recipe(
        name="accumulated",
        forward=Forward(input=x, weight=w, accumulator=one, **more),
        grad_input=GradInput(grad_output=g, accumulator=two),
        grad_weight=GradWeight(grad_output=g, accumulator=three),
    )


CASES = {
    "chunks": by(E4M3, WEIGHT, E5M2, NARROW, accumulators.sequential(FloatFormat(7, 10)), NARROW),
    "tensor cores": by(E4M3, E4M3, E5M2, H100),
    "truncated products": by(
        OFF, E4M3, OFF, accumulators.sequential(bf16, product=fp16, rounding=toward_zero)
    ),
    "saturated": by(WHOLE, WHOLE, WHOLE, SATURATED),
    "wrapped, a zero point": by(SHIFTED, WHOLE, WHOLE, accumulators.integer(16, overflow="wrap")),
    "exact": by(E4M3, E4M3, E5M2, accumulators.exact()),
}


def sums(recipe: Recipe, kind: Any, a: Tensor, b: Tensor, scales: list[Tensor]) -> Tensor:
    """Matrices (I, K) and (J, K) of numbers that are elements; scales: one, or one for each i."""
    quantizers: list[Any] = [recipe.slot(kind, name) for name in OPERANDS[kind]]
    one, other = (getattr(quantizer, "format", None) for quantizer in quantizers)
    unit = recipe.units[kind]
    assert isinstance(unit, accumulators.Accumulator)
    found = accumulate(a.unsqueeze(1), b.unsqueeze(0), unit, formats=(one, other))
    for scale in scales:
        found = found.float() * scale
    return found.float()


def step(layer: nn.Module, recipe: Recipe, x: Tensor, g: Tensor) -> tuple[Any, Any, dict[Any, Any]]:
    model, probe = quantize(nn.Sequential(copy.deepcopy(layer)), recipe=recipe), Kept()
    for one in products_of(model):
        one.probe = probe
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(g)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        y = y.detach() - bias.detach().view(-1, *[1] * (x.dim() - 2 if x.dim() > 3 else 0))
    return y.detach(), [x.grad, model[0].weight.grad], probe.found


def operand(found: dict[Any, Any], kind: str, name: str) -> tuple[Tensor, Tensor]:
    q = found.get((kind, name)) or found["forward", name]
    return q.unshifted(), torch.ones(()) if q.scale is None else q.scale


# Linear layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 29), (2, 3, 29), (0, 29)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_linear(name: str, shape: tuple[int, ...]) -> None:
    recipe, layer = CASES[name], nn.Linear(29, 11, bias=False)
    x, g = normal(*shape, seed=1), normal(*shape[:-1], 11, seed=2)
    y, (dx, dw), found = step(layer, recipe, x, g)
    (a, sa), (w, sw) = operand(found, "forward", "input"), operand(found, "forward", "weight")
    a, w = a.flatten(0, -2), w[0]
    want = sums(recipe, "forward", a, w, [sa.view(()) * sw.view(-1)])
    assert torch.equal(y.flatten(0, -2), want)
    g1, s1 = operand(found, "grad_input", "grad_output")
    last = s1 if sw.numel() > 1 else s1 * sw.view(())  # a scale of each output is in the gradient
    want = sums(recipe, "grad_input", g1.flatten(0, -2), w.T, [last.view(())])
    assert torch.equal(dx.flatten(0, -2), want)
    g2, s2 = operand(found, "grad_weight", "grad_output")
    want = sums(recipe, "grad_weight", g2.flatten(0, -2).T, a.T, [s2.view(()) * sa.view(())])
    assert torch.equal(dw, want)


def test_the_bias_is_added_at_the_end() -> None:
    layer, x = nn.Linear(29, 11), normal(5, 29)
    with torch.no_grad():
        with_bias = quantize(layer, recipe=CASES["chunks"])(x)
        plain = nn.Linear(29, 11, bias=False)
        plain.weight = layer.weight
        assert torch.equal(with_bias, quantize(plain, recipe=CASES["chunks"])(x) + layer.bias)


# Convolutions -------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d, stride 2": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 8)),
    "2d, dilated": (lambda: nn.Conv2d(3, 4, 2, dilation=2, padding=1), (2, 3, 5, 4)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (1, 2, 2, 3, 2)),
    "groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 4, 3)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1), (2, 4, 5)),
}  # fmt: skip


def expected(recipe: Recipe, layer: Any, x: Tensor, g: Tensor, w: Tensor, g2: Tensor) -> list[Any]:
    """Sums of output and grad_input, (N, channels, places), and grad_weight, (groups, out, in,
    positions); of elements, w: (groups, out, in, positions)."""
    maps = [m.double() for m in unit_maps(layer, tuple(x.shape[2:]))]
    groups, transposed = layer.groups, type(layer).__name__.startswith("ConvTranspose")
    n, parts = x.shape[0], []

    def side(x: Tensor, group: int, by: list[Tensor]) -> list[Tensor]:
        """What each place meets at each position: (n * places, channels)."""
        channels = x.flatten(2).chunk(groups, 1)[group].permute(0, 2, 1).double()
        return [(m @ channels).flatten(0, 1).float() for m in by]

    for group in range(groups):
        own, turned = w[group], [m.T for m in maps]
        found = []
        for kind, z, by in (("forward", x, maps), ("grad_input", g, turned)):
            columns = [p if kind == "forward" else p.T for p in own.unbind(-1)]
            left, right = torch.cat(side(z, group, by), 1), torch.cat(columns, 1)
            found.append(sums(recipe, kind, left, right, []).unflatten(0, (n, -1)).mT)
        identity = torch.eye(maps[0].shape[1] if transposed else maps[0].shape[0])
        others = [identity.double()] * len(maps)
        left = side(g2, group, turned if transposed else others)
        right = side(x, group, others if transposed else maps)
        pairs = zip(left, right, strict=True)
        found.append(torch.stack([sums(recipe, "grad_weight", p.T, q.T, []) for p, q in pairs], -1))
        parts.append(found)
    output, grad_input, grad_weight = zip(*parts, strict=True)
    return [torch.cat(output, 1), torch.cat(grad_input, 1), torch.stack(grad_weight)]


@pytest.mark.parametrize("name", ["tensor cores", "saturated", "truncated products"])
@pytest.mark.parametrize("layer", LAYERS)
def test_convolutions(layer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    plain, recipe = make(), CASES[name]
    plain.bias = None
    x = normal(*shape, seed=1)
    g = normal(*plain(x).shape, seed=2)
    y, (dx, dw), found = step(plain, recipe, x, g)
    (a, sa), (w, sw) = operand(found, "forward", "input"), operand(found, "forward", "weight")
    (g1, s1), (g2, s2) = (
        operand(found, kind, "grad_output") for kind in ("grad_input", "grad_weight")
    )
    want = expected(recipe, plain, a, g1, w.flatten(3), g2)
    want = [s * t.view(()) for s, t in zip(want, (sa * sw, s1 * sw, s2 * sa), strict=True)]
    assert torch.equal(y.flatten(2), want[0]) and torch.equal(dx.flatten(2), want[1])
    canonical = want[2].transpose(1, 2) if "transposed" in layer else want[2]
    assert torch.equal(dw.flatten(2), canonical.flatten(0, 1))
    monkeypatch.setattr(module, "_JOINED", 1)  # one row at a time
    again, (dx_again, _), _ = step(plain, recipe, x, g)
    assert torch.equal(again, y) and torch.equal(dx_again, dx)
    monkeypatch.setattr(module, "_JOINED", 3 * w[0, 0].numel() * w.shape[0])
    assert torch.equal(step(plain, recipe, x, g)[0], y)


def test_no_sample() -> None:
    y, (dx, dw), _ = step(
        nn.Conv2d(3, 4, 3), CASES["tensor cores"], normal(0, 3, 5, 5), normal(0, 4, 3, 3)
    )
    assert y.shape == (0, 4, 3, 3) and dx.shape == (0, 3, 5, 5) and (dw == 0).all()


@pytest.mark.parametrize("operand", [MX, INT8], ids=["mx", "int8 tiles"])
@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "conv"])
def test_no_sample_in_blocks(layer: Any, operand: Any) -> None:
    size = (5, 5) if isinstance(layer, nn.Conv2d) else ()
    y, (dx, dw), _ = step(
        layer, by(operand, operand, operand, NARROW), normal(0, 3, *size),
        normal(*layer(normal(0, 3, *size)).shape),
    )  # fmt: skip
    assert y.shape[:2] == (0, 4) and dx.shape[:2] == (0, 3)
    assert dw.shape == layer.weight.shape and (dw == 0).all()


def test_grad_weight_unfolds_one_position_of_the_kernel_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Size] = []
    cut = Unfolded.cut

    def watched(self: Unfolded, operand: Any, x: Tensor) -> Tensor:
        found = cut(self, operand, x)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(Unfolded, "cut", watched)
    layer = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    step(layer, CASES["exact"], normal(2, 4, 5, 5), normal(2, 6, 5, 5))
    unfolded = [shape for shape in seen if tuple(shape[2:]) == (4, 50)]
    assert len(unfolded) == 9 and {tuple(shape[:2]) for shape in unfolded} == {(1, 1)}


# Blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "convolution", "groups", "transposed"])
@pytest.mark.parametrize("operand", [MX, FP4, INT8], ids=["mx", "fp4 tiles", "int8 tiles"])
def test_blocks(operand: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block's sum by the accumulator, then times its scales, and added in fp32."""
    unit: Any = accumulators.sequential(FloatFormat(7, 3), chunk=3)
    formats: Any = operand.format, operand.format
    if operand is MX:  # a group more, of what fills a block up, would be truncated once more
        unit = accumulators.aligned(terms=2, bits=3, kept=6)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return accumulate(a.float().unsqueeze(1), b.float().unsqueeze(0), unit, formats=formats)

    monkeypatch.setattr(block_cases.Sum, "inner", staticmethod(inner))
    recipe = by(operand, operand, operand, unit)
    if kind == "linear":
        layer: Any = nn.Linear(19, 13, bias=False)
        x, g = normal(2, 7, 19, seed=1), normal(2, 7, 13, seed=2)
        y, (dx, dw), _ = step(layer, recipe, x, g)
        w, x, g = layer.weight.detach(), x.flatten(0, 1), g.flatten(0, 1)
        both = operand, operand
        assert torch.equal(y.flatten(0, 1), block_cases.product(both, x, w))
        assert torch.equal(dx.flatten(0, 1), block_cases.product(both, g, w.T))
        assert torch.equal(dw, block_cases.product(both, g.T, x.T))
        return
    layer = {
        "convolution": lambda: nn.Conv2d(10, 7, 3, stride=2, padding=1),
        "groups": lambda: nn.Conv2d(10, 8, 2, groups=2),
        "transposed": lambda: nn.ConvTranspose2d(10, 6, 3, stride=2, padding=1, groups=2),
    }[kind]()  # fmt: skip
    layer.bias = None
    x = normal(2, 10, 5, 4, seed=1)
    g = normal(*layer(x).shape, seed=2)
    y, (dx, dw), _ = step(layer, recipe, x, g)
    names = dict.fromkeys(("x", "w", "w_back", "x_back", "g", "g2"), operand)
    output, grad_input, grad_weight = convolved(layer, x, g, names)
    assert torch.equal(y.flatten(2), output) and torch.equal(dx.flatten(2), grad_input)
    want = grad_weight.transpose(1, 2) if kind == "transposed" else grad_weight
    assert torch.equal(dw.flatten(2), want.flatten(0, 1))


@pytest.mark.parametrize("layer", [nn.Linear(24, 6, bias=False), nn.Conv2d(24, 6, 3, bias=False)])
def test_a_rotation_of_operands_leaves_one_sum(layer: Any) -> None:
    x = normal(*((5, 24) if isinstance(layer, nn.Linear) else (1, 24, 4, 3)), seed=1)
    unit = accumulators.sequential(FloatFormat(7, 4), chunk=5)
    recipe = by(E4M3, E4M3, E5M2, unit, None, None, transform=hadamard(8))
    with torch.no_grad():
        y = quantize(copy.deepcopy(layer), recipe=recipe)(x)
    turn = hadamard(8)
    rows = x if x.dim() == 2 else x.permute(0, 2, 3, 1)
    a = E4M3(turn(rows.contiguous()))
    weight = layer.weight.detach()
    w = E4M3(turn(weight if x.dim() == 2 else weight.permute(2, 3, 0, 1).contiguous()))
    left, right = a.elements, w.elements
    if x.dim() == 4:
        left = left.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).reshape(2, -1)
        right = right.permute(2, 0, 1, 3).flatten(1)
    want = accumulate(left.unsqueeze(1), right.unsqueeze(0), unit) * (a.scale * w.scale).view(())
    got = y if x.dim() == 2 else y.flatten(2)[0].T
    assert torch.equal(got, want)


# Matrix products and attention --------------------------------------------------------------------


def test_matrix_products_of_batches() -> None:
    a, b = normal(2, 3, 5, 17, seed=1), normal(3, 17, 4, seed=2)
    recipe = by(E4M3, E4M3, E5M2, NARROW)
    with torch.no_grad():
        got = quantize(nn.Sequential(Matmul()), recipe=recipe)[0](a, b)
    batched = b.expand(2, 3, 17, 4).mT.reshape(6, 4, 17)
    one, other = E4M3(a.view(6, 5, 17)), E4M3(batched)
    assert one.scale is not None and other.scale is not None
    sums = accumulate(one.elements.unsqueeze(2), other.elements.unsqueeze(1), NARROW)
    assert torch.equal(got.view(6, 5, 4), sums * (one.scale * other.scale).view(()))


class Computations(Probe):
    def __init__(self) -> None:
        self.found: list[Computed] = []

    def result(self, product: Computed) -> None:
        self.found.append(product)


def test_attention() -> None:
    recipe = by(E4M3, E4M3, E5M2, NARROW, accumulators.sequential(FloatFormat(7, 10)), H100)
    model = quantize(nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True)]), recipe=recipe)
    products = products_of(model)
    for one in products:
        one.probe = Computations()
    z = normal(2, 5, 8, seed=1).requires_grad_()
    model[0](z, z, z)[0].square().sum().backward()
    seen = [product for one in products for product in one.probe.found]  # type: ignore[union-attr]
    batched = [product for product in seen if isinstance(product.operation, BatchedMatmul)]
    assert len(seen) == 18 and len(batched) == 6
    for product in batched:
        a, b = (q.elements for q in product.operands)
        b = b.mT if product.kind == "grad_input" else b
        a, b = (a.mT, b.mT) if product.kind == "grad_weight" else (a, b)
        scales = [q.scale for q in product.operands if q.scale is not None]
        want = [
            sums(recipe, product.kind, one, other, [(scales[0] * scales[1]).view(())])
            for one, other in zip(a, b, strict=True)
        ]
        assert torch.equal(product.result, torch.stack(want))


# Noise, engines, what is refused ------------------------------------------------------------------


def test_random_bits_are_those_of_the_step_and_the_product() -> None:
    unit = accumulators.sequential(FloatFormat(7, 3), rounding=stochastic(8))
    layer, x = nn.Conv2d(3, 4, 3, bias=False), normal(2, 3, 6, 5)

    def steps(recipe: Recipe) -> list[Tensor]:
        model = quantize(nn.Sequential(copy.deepcopy(layer)), recipe=recipe, seed=5)
        return [model(x).detach() for _ in range(2)]

    recipe = by(E4M3, E4M3, E5M2, unit)
    assert recipe.noisy
    first, second = steps(recipe)
    with kernels.eager():
        again = steps(recipe)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second)
    exact = steps(by(E4M3, E4M3, E5M2, accumulators.exact()))[0]
    assert 0 < (first - exact).abs().mean() < 1


def test_none_is_what_it_was_and_exact_equals_it_for_integers() -> None:
    layer, x = nn.Linear(29, 11), normal(5, 29)
    with torch.no_grad():
        plain, exact = (
            quantize(copy.deepcopy(layer), recipe=by(WHOLE, WHOLE, WHOLE, unit))(x)
            for unit in (None, accumulators.exact())
        )
    assert torch.equal(plain, exact)


def test_fp64_operands_must_be_exact_in_fp32() -> None:
    recipe = by(OFF, OFF, OFF, NARROW)
    layer = quantize(nn.Linear(7, 3).double(), recipe=recipe)
    assert not recipe.off and not recipe.products_off
    with pytest.raises(ValueError, match="not exact in fp32"):
        layer(normal(2, 7).double() / 3)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.float())
        assert layer(normal(2, 7).double()).dtype == torch.float64


def test_one_accumulator_is_that_of_all_products_and_stays_at_other_widths() -> None:
    each = by(E4M3, E4M3, E5M2, NARROW)
    made = replace(by(E4M3, E4M3, E5M2, H100), accumulator=NARROW)
    assert made == each and made.units == dict.fromkeys(made.units, NARROW)
    assert replace(made, forward=replace(made.forward, accumulator=H100)).units["forward"] == H100
    assert replace(recipes.int8(), accumulator=NARROW).at(4).units == made.units
    lacking = replace(recipes.fp8_delayed(), accumulator=NARROW).lacks
    assert lacking == "maxima over all ranks; scale 1 at first"
    first = replace(recipes.int8(), forward=replace(recipes.int8().forward, accumulator=NARROW))
    assert first.at(4).units == {"forward": NARROW, "grad_input": None, "grad_weight": None}
    assert replace(recipes.int8(), norm=NormRecipe()).at(4).norm == NormRecipe()
    with pytest.raises(ValueError, match="unit: got 'bf16'"):
        replace(recipes.int8(unit="bf16"), accumulator=NARROW)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"accumulator": fp16}, "forward.accumulator: got .* need one of quantizers.accumulators'"),
        ({"accumulator": "sequential(fp16)"}, r"accumulators.sequential\(fp16\) \(no text\)"),
        ({"accumulator": SATURATED}, "saturate. multiplies integers, but input is OFF"),
        ({"accumulator": H100, "weight": WHOLE, "input": E4M3}, "e4m3 or e5m2, but weight is int8"),
    ],
    ids=["a format", "a text", "floats in integers", "integers in fp8"],
)
def test_what_no_unit_multiplies_is_refused_at_once(given: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Recipe(name="x", forward=Forward(**given))


def test_a_unit_and_an_accumulator_are_two_answers() -> None:
    own = GradWeight(grad_output=E5M2, unit="bf16", accumulator=NARROW)
    with pytest.raises(ValueError, match="whose sums are fp32's, and accumulator=sequential"):
        Recipe(name="x", forward=Forward(input=E4M3, weight=E4M3), grad_weight=own)


class Odd:
    """A quantizer that does not say its format."""

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> Any:
        return E5M2(x)


def test_what_a_quantizer_of_ones_own_gives_is_seen_when_it_is_called() -> None:
    layer = quantize(nn.Linear(7, 3), recipe=by(Odd(), WHOLE, WHOLE, SATURATED, None, None))
    with pytest.raises(ValueError, match="multiplies integers, but input is of e5m2"):
        layer(normal(2, 7))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own call
@pytest.mark.parametrize(
    "layer", [nn.Linear(29, 11), nn.Conv2d(3, 4, (3, 2))], ids=["linear", "2d"]
)
def test_it_is_one_operation_of_a_compiled_graph(layer: nn.Module) -> None:
    wrap = accumulators.integer(16, overflow="wrap")
    model = quantize(nn.Sequential(layer), recipe=by(WHOLE, WHOLE, WHOLE, wrap))
    x = normal(*((5, 29) if isinstance(layer, nn.Linear) else (2, 3, 5, 4)))
    found = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# What is told of it -------------------------------------------------------------------------------


def _rows(unit: Any) -> dict[str, Any]:
    layer = nn.Linear(40, 6, bias=False)
    model = quantize(nn.Sequential(layer), recipe=by(WHOLE, WHOLE, WHOLE, unit, None, None))
    return {row.role: row for row in inspect(model, normal(9, 40)).rows}


@pytest.mark.filterwarnings("ignore:accumulator")  # which these products can pass: that is asked
def test_inspect_shows_the_error_of_the_sums_alone_and_counts_overflows() -> None:
    a = WHOLE(normal(9, 40))
    torch.manual_seed(0)
    w = WHOLE(nn.Linear(40, 6, bias=False).weight.detach())
    whole = a.elements.long() @ w.elements.long().T
    for unit in (
        accumulators.integer(15, overflow="wrap"),
        accumulators.integer(15, overflow="saturate"),
        accumulators.sequential(FloatFormat(5, 10, bias=18), chunk=8),
    ):
        torch.manual_seed(0)
        row = _rows(unit)["output (accumulator)"]
        sums = accumulate(a.elements.unsqueeze(1), w.elements.unsqueeze(0), unit)
        error = sums.double() - whole
        over = (sums != whole) if "int" in str(unit) else ~sums.isfinite()
        if "int" in str(unit):
            want = 10 * torch.log10(whole.double().square().sum() / error.square().sum())
            assert row.sqnr_db == pytest.approx(want.item(), abs=1e-4)
        assert row.clipped == over.sum() / over.numel() and 0 < row.clipped < 1
        assert row.note == f"{int(over.sum())} sums overflowed"
    assert "output (accumulator)" not in _rows(None)
    assert _rows(accumulators.exact())["output (accumulator)"].sqnr_db == float("inf")


def test_an_endless_sum_is_as_fine() -> None:
    for fmt in (fp16, FloatFormat(4, 7, bias=10, specials="finite"), e4m3, FloatFormat(2, 3), bf16):
        wide = accumulators.endless(accumulators.sequential(fmt)).format  # type: ignore[union-attr]
        assert wide.smallest == fmt.smallest and wide.mantissa == fmt.mantissa
        assert wide.largest >= 2.0**100 or wide == fmt
        assert wide.specials == fmt.specials and wide.on_overflow == fmt.on_overflow
    assert accumulators.endless(H100) == H100


def test_cost_adds_in_the_accumulators_format() -> None:
    model = quantize(nn.Sequential(nn.Linear(8, 4)), recipe=CASES["tensor cores"])
    rows = {row.product: row for row in cost(model, normal(2, 8)).rows}
    assert rows["forward"].accumulator == "e8m13"
    assert rows["forward"].add_pj == pytest.approx(64 * 0.4 * 14 / 11)  # as fp16's, by its width
    fp8 = quantize(nn.Sequential(nn.Linear(8, 4)), recipe=by(E4M3, E4M3, E5M2, None))
    assert cost(fp8, normal(2, 8)).rows[0].accumulator == "fp32"
    narrow = quantize(nn.Sequential(nn.Linear(8, 4)), recipe=CASES["saturated"])
    assert {row.accumulator for row in cost(narrow, normal(2, 8)).rows} == {"int17"}


def test_a_summary_says_how_long_sums_take_where_that_is_long() -> None:
    net = nn.Sequential(nn.Linear(29, 11), nn.Linear(11, 2))
    model = quantize(net, recipe=CASES["exact"], overrides={"1": by(E4M3, E4M3, E5M2, None)})
    found = summary(model, normal(5, 29))
    assert set(found.seconds) == {"0"} and len(found.seconds["0"]) == 2  # the input has no gradient
    assert all(0 < seconds < 10 for seconds in found.seconds["0"].values())
    found.seconds["0"]["forward"] = 7.0
    assert "take about 7 s a step of such inputs, in seconds: 0 7" in str(found)
    found.seconds["0"] = {"forward": 0.1}
    assert "slow " not in str(found)
    assert not summary(quantize(net, recipe="fp8"), normal(5, 29)).seconds


def test_on_meta_there_are_shapes_alone() -> None:
    for name in ("chunks", "saturated"):
        model = quantize(nn.Sequential(nn.Conv2d(8, 6, 3)), recipe=CASES[name]).to("meta")
        x = torch.empty(2, 8, 64, 64, device="meta", requires_grad=True)
        y = model(x)
        y.sum().backward()
        assert y.shape == (2, 6, 62, 62) and x.grad.shape == x.shape and y.dtype == torch.float32


@pytest.mark.parametrize(
    ("accumulator", "end"),
    [
        (accumulators.sequential(FloatFormat(5, 10)), "holds 65504: larger ones are infinite"),
        (accumulators.sequential(bf16, product=fp16), "holds 65504: larger ones are infinite"),
        (accumulators.sequential(FloatFormat(5, 9, overflow="nan")), "larger ones are NaN"),
        (accumulators.sequential(bf16), None),
    ],
    ids=str,
)
def test_a_range_that_products_can_leave_is_said_at_conversion(
    accumulator: accumulators.Sequential, end: str | None
) -> None:
    recipe = by(E4M3, E4M3, E5M2, accumulator)
    if end is None:
        assert "sums  " not in str(summary(quantize(nn.Linear(4, 2), recipe=recipe)))
        return
    said = f"forward: products of e4m3 and e4m3 reach 200704, and {re.escape(str(accumulator))} "
    with pytest.warns(UserWarning, match=f"{said}.*{end}") as caught:
        model = quantize(nn.Linear(4, 2), recipe=recipe)
    assert [warning.filename for warning in caught] == [__file__]
    assert re.search(f"sums       {said}.*{end}", str(summary(model)))
    with pytest.warns(UserWarning, match=said):
        set_recipe(quantize(nn.Linear(4, 2)), recipe)


def test_sums_that_become_infinite_are_named_by_layer_and_role(tmp_path: Path) -> None:
    recipe = by(E4M3, E4M3, E5M2, accumulators.sequential(fp16))
    with pytest.warns(UserWarning, match="accumulator"):
        model = quantize(
            nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4)), recipe=recipe, overrides={"0": None}
        )
    place = first_nonfinite(model, lambda: model(normal(16, 32)).sum())
    assert place == ("1", "output (accumulator)")
    assert all(product.probe is None for product in products_of(model))
    with pytest.warns(UserWarning, match="accumulator"):
        config = TrainConfig(
            recipe="fp8",
            accumulator="sequential(fp16)",
            model="mlp",
            baseline=False,
            runs_dir=str(tmp_path),
        )
        with pytest.raises(NonFiniteError, match=r"exact sums are finite: .* exponent") as error:
            train(config, say=lambda text: None)
    assert error.value.role == "output (accumulator)" and error.value.step == 0


def test_a_monitor_counts_the_sums_that_overflow_and_diagnose_names_them() -> None:
    sums = accumulators.integer(14, overflow="saturate")
    recipe = Recipe(name="x", forward=Forward(input=WHOLE, weight=WHOLE, accumulator=sums))
    with pytest.warns(UserWarning, match=r"forward: products of int8 and int8 reach 16129, and"):
        layer = quantize(nn.Linear(64, 8), recipe=recipe)
    monitor = Monitor(layer, every=1)
    layer(normal(16, 64)).sum().backward()
    monitor.end_step()
    (row,) = [row for row in monitor.rows if row.role == "output (accumulator)"]
    (seen,) = [one for one in inspect(layer, normal(16, 64)).rows if one.role == row.role]
    assert row.clipped == seen.clipped > 0
    assert diagnose(monitor).findings[0].symptom == "overflowing sums"
