"""Blocks along the sum, in every operand of every product, against sums written out in float64.

`block_cases` writes them out.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from block_cases import (
    FP4,
    INT8,
    KINDS,
    MX,
    Sum,
    convolved,
    kept,
    normal,
    product,
    recipe,
)
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, inspect, quantize
from quantizers import (
    OFF,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    blocks,
    e2m1,
    e4m3,
    e8m0,
    ema,
    fp32,
    kernels,
    minmax,
    per_axis,
    per_channel,
    per_tensor,
    per_token,
    stochastic,
)

# Linear layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_the_matrix_product_of_its_tokens(kind: str) -> None:
    """Three axes, blocks that leave a shorter one along every axis."""
    q = KINDS[kind]
    layer = nn.Linear(19, 13)
    x, g = normal(3, 7, 19, seed=1).requires_grad_(), normal(3, 7, 13, seed=2)
    model = quantize(copy.deepcopy(layer), recipe=recipe(q))
    y = model(x)
    y.backward(g)
    w, flat_x, flat_g = layer.weight.detach(), x.detach().flatten(0, 1), g.flatten(0, 1)
    expected = product((q, q), flat_x, w) + layer.bias
    assert torch.equal(y.flatten(0, 1), expected)
    assert torch.equal(x.grad.flatten(0, 1), product((q, q), flat_g, w.T))
    assert torch.equal(model.weight.grad, product((q, q), flat_g.T, flat_x.T))


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_are_one_axis_of_tokens(kind: str) -> None:
    results = []
    for shape in ((24, 19), (2, 3, 4, 19), (24, 1, 19)):
        torch.manual_seed(0)
        r = recipe(replace(KINDS[kind], rounding=stochastic(8)))
        model = quantize(nn.Linear(19, 13), recipe=r)
        x = normal(24, 19, seed=1).view(shape).requires_grad_()
        y = model(x)
        y.backward(normal(24, 13, seed=2).view(y.shape))
        results.append((y.flatten(0, -2), x.grad.flatten(0, -2), model.weight.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


TWO = Scale(e4m3, over=Scale(fp32, top=448))


@pytest.mark.parametrize("tile", [blocks(8), blocks(8, 8)], ids=str)
def test_a_scale_of_the_whole_multiplies_the_sums_once(tile: Granularity) -> None:
    """Two levels: fl32(fl32(sum of blocks) * fl24(outer_a * outer_b))."""
    q = Quantizer(format=e2m1, granularity=tile, scale=TWO)
    r = recipe(q)
    layer = nn.Linear(19, 13)
    x, g = normal(3, 7, 19, seed=1).requires_grad_(), normal(3, 7, 13, seed=2) * 1e-3
    model = quantize(copy.deepcopy(layer), recipe=r)
    y = model(x)
    y.backward(g)
    w, flat_x, flat_g = layer.weight.detach(), x.detach().flatten(0, 1), g.flatten(0, 1)

    def levels(a: Tensor, b: Tensor) -> Tensor:
        both = q(a).outer * q(b).outer
        return product((q, q), a, b) * both

    assert torch.equal(y.flatten(0, 1), levels(flat_x, w) + layer.bias)
    assert torch.equal(x.grad.flatten(0, 1), levels(flat_g, w.T))
    assert torch.equal(model.weight.grad, levels(flat_g.T, flat_x.T))


def test_a_scale_of_each_row_multiplies_its_sums_once() -> None:
    rows = Scale(e4m3, over=Scale(fp32, top=448, granularity=blocks(None)))
    q = Quantizer(format=e2m1, granularity=blocks(8), scale=rows)
    layer, x = nn.Linear(19, 13, bias=False), normal(3, 7, 19, seed=1)
    flat, w = x.flatten(0, 1), layer.weight.detach()
    both = q(flat).outer * q(w).outer.T
    assert q(flat).outer.shape == (21, 1)
    y = quantize(copy.deepcopy(layer), recipe=recipe(q))(x)
    assert torch.equal(y.flatten(0, 1), product((q, q), flat, w) * both)


def test_other_second_levels_are_one_scale_a_block() -> None:
    """An outer scale that changes along the sum, and one beside a convolution's windows."""
    parts = Scale(e4m3, over=Scale(fp32, top=448, granularity=blocks(16)))
    q = Quantizer(format=e2m1, granularity=blocks(8), scale=parts)
    layer, x = nn.Linear(40, 13, bias=False), normal(7, 40, seed=1)
    w = layer.weight.detach()

    def one(matrix: Tensor) -> QTensor:
        return q(matrix).one_level()

    y = quantize(copy.deepcopy(layer), recipe=recipe(q))(x)
    assert torch.equal(y, product((one, one), x, w))
    pixels = Scale(e4m3, over=Scale(fp32, top=448, granularity=blocks(None)))
    q = Quantizer(format=e2m1, granularity=blocks(8), scale=pixels)
    convolution, image = nn.Conv2d(20, 6, 3, bias=False), normal(2, 20, 5, 5, seed=1)
    y = quantize(copy.deepcopy(convolution), recipe=recipe(q, MX, MX))(image)
    by = dict.fromkeys(("g", "w_back", "g2", "x_back", "w"), MX) | {"x": one}
    assert torch.equal(y.flatten(2), convolved(convolution, image, torch.zeros_like(y), by)[0])


@pytest.mark.parametrize("layer", [nn.Linear(12, 5, bias=False), nn.Conv2d(6, 5, 3, bias=False)])
def test_a_second_level_without_blocks_is_part_of_the_scale(layer: Any) -> None:
    q = Quantizer(format=e2m1, scale=Scale(e8m0, rule="ocp_floor", prescale=0.75))
    x = normal(*((4, 12) if isinstance(layer, nn.Linear) else (2, 6, 5, 5)), seed=1)
    y = quantize(copy.deepcopy(layer), recipe=recipe(q))(x)
    exact = copy.deepcopy(layer).double()
    exact.weight = nn.Parameter(q(layer.weight.detach()).dequantize().double())
    close = exact(q(x).dequantize().double())
    assert torch.allclose(y.double(), close, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", ["off", "tensor", "channel", "longer blocks", "plain int8"])
def test_blocks_meet_other_operands(other: str) -> None:
    """A weight that is not cut along the sum, or otherwise, beside an input in blocks."""
    w = {
        "off": OFF,
        "tensor": Quantizer(format=e4m3),
        "channel": Quantizer(format=IntFormat(8), granularity=per_channel()),
        "longer blocks": replace(MX, granularity=blocks(16)),
        "plain int8": Quantizer(format=IntFormat(8)),
    }[other]
    layer, x = nn.Linear(40, 6, bias=False), normal(5, 40, seed=1)
    y = quantize(copy.deepcopy(layer), recipe=recipe(MX, w, OFF))(x)
    matrix = layer.weight.detach()
    if other == "channel":
        expected = product((MX, replace(w, granularity=blocks(None))), x, matrix)
    elif other == "off":
        expected = product((MX, lambda m: QTensor(m)), x, matrix)
    else:
        expected = product((MX, w), x, matrix)
    assert torch.equal(y, expected)


def test_blocks_that_do_not_nest_are_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="forward: blocks of 6 and 8 along its sum do not nest"):
        recipe(MX, INT8)
    halves = replace(MX, granularity=blocks(16))
    assert recipe(MX, halves).forward.weight == halves


@pytest.mark.parametrize(
    ("layer", "bad", "message"),
    [
        (nn.Conv2d(8, 4, 3), {"x": per_token}, "input of forward: its scale varies along axis 1"),
        (nn.Linear(8, 4), {"g2": per_token}, "grad_output of grad_weight: .*axis 0"),
        (nn.Linear(8, 4), {"w_back": per_axis(0, 1)}, None),  # folded into the gradient
        (nn.Linear(8, 4), {"x": per_axis(-1)}, "input of forward: its scale varies along axis 1"),
        (nn.Linear(8, 4), {"g": per_axis(-2)}, None),  # the last of any number of leading axes
        (nn.ConvTranspose2d(8, 4, 3), {"g": per_axis(1)}, "grad_output of grad_input: .*axis 1"),
        (nn.Conv2d(8, 4, 3), {"g2": per_axis(1), "x_back": per_axis(1)}, None),
    ],
)
def test_scales_that_no_product_can_apply_are_refused_at_conversion(
    layer: Any, bad: dict[str, Granularity], message: str | None
) -> None:
    q = {
        name: Quantizer(format=IntFormat(8), granularity=bad.get(name, per_tensor))
        for name in ("x", "w", "g", "w_back", "g2", "x_back")
    }
    r = Recipe(
        name="axes",
        forward=Forward(input=q["x"], weight=q["w"]),
        grad_input=GradInput(grad_output=q["g"], weight=q["w_back"]),
        grad_weight=GradWeight(grad_output=q["g2"], input=q["x_back"]),
    )
    model = nn.Sequential(copy.deepcopy(layer))
    if message is not None:
        with pytest.raises(ValueError, match=rf"layer '0': {message}"):
            quantize(model, recipe=r)
        return
    shape = (2, 8) if isinstance(layer, nn.Linear) else (2, 8, 5, 5)
    quantize(model, recipe=r)(normal(*shape).requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Linear(33, 4), [(1, 4096)]),
        (nn.Linear(4096, 4), [(2, 33)]),
        (nn.Conv2d(8, 4, 3), [(2, 9, 5, 5)]),
        (nn.Conv2d(8, 4, 3), [(2, 4, 5, 5)]),
        (nn.Conv2d(8, 4, 3, groups=2), [(2, 6, 5, 5)]),
        (nn.ConvTranspose2d(8, 4, 3), [(2, 12, 5, 5)]),
        (nn.Conv2d(4, 6, 3), [(1, 4, 2, 2)]),
        (Matmul(), [(3, 45), (44, 7)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("fused", [True, False])
def test_operands_that_do_not_fit_are_refused_in_the_forward(
    layer: Any, shapes: list[tuple[int, ...]], fused: bool
) -> None:
    """A kernel would read beyond the shorter one."""
    model = quantize(nn.Sequential(copy.deepcopy(layer)), recipe=recipe(MX))[0]
    with pytest.raises((ValueError, RuntimeError)), nullcontext() if fused else kernels.eager():
        model(*[normal(*shape) for shape in shapes])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [nn.Linear(40, 5), nn.Conv2d(40, 5, 3, padding=1)])
def test_an_empty_batch_has_empty_outputs_and_no_gradient(layer: Any, kind: str) -> None:
    model = quantize(copy.deepcopy(layer), recipe=recipe(KINDS[kind]))
    x = torch.zeros((0, 40) if isinstance(layer, nn.Linear) else (0, 40, 4, 4)).requires_grad_()
    y = model(x)
    y.sum().backward()
    assert y.shape[0] == 0 and x.grad.shape == x.shape and bool((model.weight.grad == 0).all())


# Convolutions -------------------------------------------------------------------------------------

LAYERS = {
    "plain": nn.Conv2d(12, 10, 3, bias=False),
    "strided, padded": nn.Conv2d(12, 10, 3, stride=2, padding=1, bias=False),
    "dilated, uneven": nn.Conv2d(9, 5, (2, 3), (1, 2), (2, 0), (2, 1), bias=False),
    "grouped": nn.Conv2d(20, 12, 3, padding=1, groups=2, bias=False),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    "pointwise": nn.Conv2d(20, 10, 1, bias=False),
    "transposed": nn.ConvTranspose2d(10, 12, 3, 2, 1, output_padding=1, bias=False),
    "transposed, grouped": nn.ConvTranspose2d(8, 18, (3, 2), groups=2, dilation=2, bias=False),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_are_sums_over_positions_and_blocks_of_channels(kind: str, layer: str) -> None:
    q, plain = KINDS[kind], LAYERS[layer]
    x = normal(2, plain.in_channels, 5, 6, seed=1).requires_grad_()
    model = quantize(copy.deepcopy(plain), recipe=recipe(q))
    y = model(x)
    g = normal(*y.shape, seed=2)
    y.backward(g)
    by = dict.fromkeys(("x", "w", "g", "w_back", "g2", "x_back"), q)
    if kind == "whole rows":  # blocks of a position's channels: a whole row of each is that
        q = replace(q, granularity=blocks(10**6))
    output, grad_input, grad_weight = convolved(plain, x.detach(), g, by)
    assert torch.equal(y.flatten(2), output)
    assert torch.equal(x.grad.flatten(2), grad_input)
    canonical = model.weight.grad.flatten(2).unflatten(0, (plain.groups, -1))
    if isinstance(plain, nn.ConvTranspose2d):
        canonical = canonical.transpose(1, 2)
    assert torch.equal(canonical, grad_weight)


@pytest.mark.parametrize("layer", ["strided, padded", "transposed"])
def test_blocks_of_samples_have_the_scale_of_their_samples(layer: str) -> None:
    """Not of the padding that unfolding puts before them."""
    plain, int8 = LAYERS[layer], Quantizer(format=IntFormat(8))
    q = replace(int8, granularity=Granularity(((0, 2),)))
    r = Recipe(
        name="samples",
        forward=Forward(input=int8, weight=int8),
        grad_input=GradInput(grad_output=int8),
        grad_weight=GradWeight(grad_output=q, input=q),
    )
    x = normal(5, plain.in_channels, 5, 6, seed=1)
    model = quantize(copy.deepcopy(plain), recipe=r)
    y = model(x)
    g = normal(*y.shape, seed=2)
    y.backward(g)
    total: Any = 0
    for start in range(0, 5, 2):
        part = copy.deepcopy(plain).double()
        one, other = (
            (codes[start : start + 2].double(), scale.flatten()[start // 2])
            for codes, scale in ((q(t).elements, q(t).scale) for t in (x, g))
        )
        part(one[0]).backward(other[0])
        total = total + part.weight.grad.float() * (one[1] * other[1])
    assert torch.equal(model.weight.grad, total)


@pytest.mark.parametrize("layer", [nn.Conv1d(9, 4, 3, padding=1), nn.Conv3d(3, 4, 2, padding=1)])
def test_one_and_three_axes_of_space(layer: Any) -> None:
    """As a convolution of two axes, one of which has length 1, and a linear layer of windows."""
    x = normal(2, layer.in_channels, *[4] * len(layer.kernel_size), seed=1)
    y = quantize(copy.deepcopy(layer), recipe=recipe(MX))(x)
    total = Sum()
    pixels = MX(x.movedim(1, -1).flatten(0, -2))
    padded = pixels.dequantize().view(*x.movedim(1, -1).shape).movedim(-1, 1)
    exact = type(layer)(*[layer.in_channels, layer.out_channels], layer.kernel_size, padding=1)
    exact.weight, exact.bias = nn.Parameter(layer.weight.double()), None
    w = layer.weight.detach().flatten(2).permute(2, 0, 1)
    values = torch.stack([MX(m).dequantize() for m in w]).permute(1, 2, 0).reshape(w.shape[1], -1)
    exact.weight = nn.Parameter(values.view(layer.weight.shape).double())
    close = exact(padded.double()).float() + layer.bias.view(-1, *[1] * (x.dim() - 2))
    assert total.total is None and torch.allclose(y, close, rtol=1e-5, atol=1e-5)


def test_layout_in_memory_changes_no_bit() -> None:
    layer = nn.Conv2d(12, 10, 3, stride=2, padding=1)
    x, results = normal(2, 12, 6, 6, seed=1), []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = quantize(copy.deepcopy(layer), recipe=recipe(MX)).to(memory_format=layout)
        own = x.clone(memory_format=layout).requires_grad_()
        y = model(own)
        assert y.is_contiguous(memory_format=layout)
        y.backward(normal(*y.shape, seed=2))
        results.append((y, own.grad, model.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Batches of matrices ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_matrices_are_each_a_product(kind: str) -> None:
    q = KINDS[kind]
    a, b = (
        normal(2, 3, 7, 19, seed=1).requires_grad_(),
        normal(2, 3, 19, 5, seed=2).requires_grad_(),
    )
    g = normal(2, 3, 7, 5, seed=3)
    y = quantize(nn.Sequential(Matmul()), recipe=recipe(q))[0](a, b)
    y.backward(g)
    for i in range(2):
        for j in range(3):
            left, right, grad = a[i, j].detach(), b[i, j].detach(), g[i, j]
            assert torch.equal(y[i, j], product((q, q), left, right.T))
            assert torch.equal(a.grad[i, j], product((q, q), grad, right))
            assert torch.equal(b.grad[i, j], product((q, q), grad.T, left.T).T)


# What the backward products take ------------------------------------------------------------------


def test_square_blocks_of_a_weight_serve_both_of_its_products() -> None:
    tile = replace(FP4, rounding=stochastic(8))
    found = kept(recipe(MX, tile, MX), nn.Linear(10, 6), normal(4, 10))
    assert ("grad_input", "weight") not in found and ("grad_weight", "input") in found
    own = recipe(MX, tile, MX)
    own = replace(own, grad_input=GradInput(grad_output=MX, weight=replace(tile, format=e4m3)))
    assert ("grad_input", "weight") in kept(own, nn.Linear(10, 6), normal(4, 10))


def test_blocks_across_the_sum_are_cut_anew_along_it() -> None:
    found = kept(recipe(MX), nn.Linear(20, 12), normal(2, 5, 20))
    assert found["forward", "weight"].scale.shape == (1, 12, 3)
    assert found["grad_input", "weight"].scale.shape == (1, 20, 2)
    assert found["grad_weight", "input"].scale.shape == (1, 20, 2)
    assert found["grad_weight", "grad_output"].scale.shape == (1, 12, 2)


def test_a_parameter_that_changed_before_the_backward_pass_is_refused() -> None:
    """What is quantized in the backward pass is the forward's weight, or nothing."""
    model = quantize(nn.Linear(20, 12), recipe=recipe(MX))
    y = model(normal(5, 20).requires_grad_())
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_every_role_is_inspected() -> None:
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)),
                     recipe=recipe(MX))  # fmt: skip
    report = inspect(model, normal(4, 8, 4, 4), loss=lambda y: y.square().sum())
    roles = {row.role for row in report.rows if row.layer == "2"}
    assert roles == {
        "input", "weight", "output", "weight (grad_input)", "input (grad_weight)", "grad_input",
        "grad_output (grad_input)", "grad_output (grad_weight)", "grad_weight",
    }  # fmt: skip
    assert all(row.sqnr_db > 20 for row in report.rows)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_step_is_the_eager_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    grads = []
    for compiled in (False, True):
        model = quantize(copy.deepcopy(net), recipe=recipe(replace(MX, rounding=stochastic(8))))
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        run(normal(4, 8, 4, 4, seed=1)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch._dynamo.reset()
    for eager, other in zip(*grads, strict=True):
        assert torch.equal(eager, other)


def test_what_blocks_cannot_honour_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match=r"forward\.input.*backward of its own.*identity"):
        recipe(replace(MX, straight_through="strict"))
    with pytest.raises(ValueError, match=r"range: .*memory, with blocks"):
        replace(MX, range=ema(minmax))
    with pytest.raises(ValueError, match="size"):
        blocks(0)
    assert isinstance(blocks(4), Granularity) and str(blocks(4, 2)) == (
        "blocks of 4 along the sum, 2 across"
    )
