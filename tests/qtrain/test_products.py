"""Products of operands with every granularity, against block sums written out in float64."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, quantize
from qtrain.products import call
from qtrain.products.blocks import multiply
from qtrain.products.operations import Linear
from qtrain.products.product import Product
from quantizers import (
    OFF,
    FloatFormat,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    bf16,
    e4m3,
    e5m2,
    e8m0,
    fp16,
    minmax,
    per_axis,
    per_sample,
    per_tensor,
    per_token,
    stochastic,
)

INT8 = Quantizer(format=IntFormat(8))
UINT8 = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
ROWS, INPUTS, OUTPUTS = 10, 80, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(base: Quantizer, *sizes: tuple[int, int]) -> Quantizer:
    return replace(base, granularity=Granularity(sizes))


def each(base: Quantizer, granularity: Granularity) -> Quantizer:
    return replace(base, granularity=granularity)


def recipe(
    x: Any, w: Any, g: Any = INT8, g2: Any = INT8, *, w_back: Any = None, x_back: Any = None
) -> Recipe:
    return Recipe(
        name="test",
        forward=Forward(input=x, weight=w),
        grad_input=GradInput(grad_output=g, weight=w_back),
        grad_weight=GradWeight(grad_output=g2, input=x_back),
    )


# The oracle: codes and one scale an element, the blocks of the sum given --------------------------


def codes(q: QTensor) -> Tensor:
    zero = 0 if q.zero_point is None else full(q, q.zero_point).double()
    return q.elements.double() - zero


def full(q: QTensor, compact: Tensor) -> Tensor:
    for axis, size in enumerate(q.elements.shape):
        compact = compact.repeat_interleave(q.block[axis], axis).narrow(axis, 0, size)
    return compact


def scales(q: QTensor) -> Tensor:
    return torch.ones(q.elements.shape) if q.scale is None else full(q, q.scale)


def blockwise(a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, step: int) -> Tensor:
    """sum over blocks of (sa sb) (a b^T), a: (M, K), b: (N, K)."""
    total: Tensor | None = None
    for start in range(0, a.shape[1], step):
        sums = (a[:, start : start + step] @ b[:, start : start + step].T).float()
        part = sums * (sa[:, start, None] * sb[None, :, start])
        total = part if total is None else total + part
    assert total is not None
    return total


@dataclass
class Case:
    """A recipe and how it must be computed: the block lengths of the three sums, what folds."""

    name: str
    recipe: Recipe
    steps: tuple[int, int, int] = (INPUTS, OUTPUTS, ROWS)
    fold_weight: bool = False
    fold_input: bool = False


CHANNELS = each(INT8, per_axis(0, 1))
CASES = [
    Case("per tensor", recipe(INT8, INT8)),
    Case("affine input and weight", recipe(UINT8, UINT8, UINT8, UINT8)),
    Case("unsigned input", recipe(Quantizer(format=IntFormat(8, signed=False)), INT8)),
    Case("weight per output channel", recipe(INT8, CHANNELS), fold_weight=True),
    Case("input per sample", recipe(each(INT8, per_sample), INT8), fold_input=True),
    Case("input per token", recipe(each(INT8, per_token), INT8), fold_input=True),
    Case("affine input per sample", recipe(each(UINT8, per_sample), CHANNELS),
         fold_weight=True, fold_input=True),
    Case("affine per sample, gradient in blocks of rows",
         recipe(each(UINT8, per_sample), INT8, INT8, cut(INT8, (0, 4))),
         (INPUTS, OUTPUTS, 4), fold_input=True),
    Case("affine input, blocks of rows", recipe(cut(UINT8, (0, 4)), INT8), (INPUTS, OUTPUTS, 4)),
    Case("weight in blocks of outputs", recipe(INT8, cut(INT8, (1, 4))), (INPUTS, 4, ROWS)),
    Case("1x32 along the sum, ragged",
         recipe(cut(INT8, (0, 1), (1, 32)), cut(INT8, (1, 1), (2, 32)),
                w_back=CHANNELS, x_back=INT8), (32, OUTPUTS, ROWS), fold_weight=True),
    Case("affine 1x32 along the sum",
         recipe(cut(UINT8, (0, 1), (1, 32)), cut(UINT8, (1, 1), (2, 32)),
                w_back=INT8, x_back=UINT8), (32, OUTPUTS, ROWS)),
    Case("nested blocks, 64 and 32",
         recipe(cut(UINT8, (1, 64)), cut(INT8, (2, 32)), w_back=INT8, x_back=UINT8),
         (32, OUTPUTS, ROWS)),
    Case("4x4 tiles everywhere",
         recipe(cut(INT8, (0, 4), (1, 4)), cut(INT8, (1, 4), (2, 4)), cut(INT8, (0, 4), (1, 4)),
                cut(INT8, (0, 4), (1, 4))), (4, 4, 4)),
    Case("gradients per row and per channel",
         recipe(INT8, INT8, each(INT8, per_sample), each(INT8, per_axis(1)))),
    Case("own quantizers per channel",
         recipe(INT8, INT8, w_back=each(INT8, per_axis(2)), x_back=each(INT8, per_axis(1)))),
    Case("unrelated widths",
         recipe(Quantizer(format=IntFormat(3)), Quantizer(format=IntFormat(14)),
                Quantizer(format=IntFormat(16)), Quantizer(format=IntFormat(2)))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_integer_products_of_any_granularity_are_block_sums(case: Case) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS)
    x, grad = normal(ROWS, INPUTS, seed=1) + 0.2, normal(ROWS, OUTPUTS, seed=2)
    w = layer.weight.detach()
    r = case.recipe
    xq, wq = r.forward.input(x), r.forward.weight(w[None])
    w_back, x_back = (r.slot("grad_input", "weight")(w[None]), r.slot("grad_weight", "input")(x))

    expected = blockwise(codes(xq), scales(xq), codes(wq)[0], scales(wq)[0], case.steps[0])
    sw, sx = scales(w_back)[0], scales(x_back)
    g = grad * sw[:, 0] if case.fold_weight else grad
    gq = r.grad_input.grad_output(g)
    sw = torch.ones_like(sw) if case.fold_weight else sw
    expected_input = blockwise(codes(gq), scales(gq), codes(w_back)[0].T, sw.T, case.steps[1])
    g = grad * sx[:, :1] if case.fold_input else grad
    gq = r.grad_weight.grad_output(g)
    sx = torch.ones_like(sx) if case.fold_input else sx
    expected_weight = blockwise(codes(gq).T, scales(gq).T, codes(x_back).T, sx.T, case.steps[2])

    x.requires_grad_()
    quantized: Any = quantize(layer, recipe=r)
    output = quantized(x)
    output.backward(grad)
    assert torch.equal(output, expected + layer.bias)
    assert torch.equal(x.grad, expected_input)
    assert torch.equal(quantized.weight.grad, expected_weight)


@pytest.mark.parametrize("granularity", [per_sample, per_token, Granularity(((0, 2),))], ids=str)
def test_three_axes_are_two_axes_of_tokens(granularity: Granularity) -> None:
    """(batch, tokens, in) against (batch * tokens, in), where both can express the granules."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 5)
    x, grad = normal(4, 3, 8, seed=1), normal(4, 3, 5, seed=2)
    flat = Granularity(((0, {"per_sample": 3}.get(str(granularity), 6)),))
    flat = {per_sample: Granularity(((0, 3),)), per_token: per_token}.get(granularity, flat)
    found = []
    for shape, own in ((x, granularity), (x.flatten(0, 1), flat)):
        quantized: Any = quantize(layer, recipe=recipe(each(UINT8, own), CHANNELS, INT8, OFF))
        leaf = shape.clone().requires_grad_()
        output = quantized(leaf)
        output.backward(grad.view(output.shape))
        assert leaf.grad is not None
        found.append((output.flatten(), leaf.grad.flatten(), quantized.weight.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-6)  # fp32 sums


def positions(kernel: int) -> Tensor:
    """A mask for each position of a square kernel, in C order."""
    return torch.eye(kernel * kernel, dtype=torch.float64).view(-1, kernel, kernel)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_in_channel_blocks(groups: int, kernel: int) -> None:
    channels = Granularity(((1, 32),))
    torch.manual_seed(0)
    layer = nn.Conv2d(72, 4, kernel, padding=1, groups=groups, bias=False)
    x = normal(2, 72, 5, 5, seed=1)
    r = recipe(each(UINT8, channels), cut(INT8, (2, 32)), w_back=INT8, x_back=UINT8)
    if groups > 1:
        with pytest.raises(ValueError, match=r"layer '\(model\)'.*axis 1 of 72.*groups=1"):
            quantize(layer, recipe=r)(x)
        return
    xq, wq = r.forward.input(x), r.forward.weight(layer.weight.detach()[None])
    total: Any = None
    for position, (index, start) in itertools.product(
        positions(kernel), enumerate(range(0, 72, 32))
    ):
        part = torch.nn.functional.conv2d(
            codes(xq)[:, start : start + 32], codes(wq)[0][:, start : start + 32] * position,
            padding=1,
        )  # fmt: skip
        scale = xq.scale[:, index, 0, 0] * wq.scale[0, 0, index, 0, 0]  # type: ignore[index]
        total = part.float() * scale if total is None else total + part.float() * scale
    assert torch.equal(quantize(layer, recipe=r)(x), total)


def test_convolution_weight_blocks_of_outputs_cut_grad_input() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 10, 3, bias=False)
    r = recipe(INT8, cut(INT8, (1, 4)))
    x, grad = normal(2, 3, 6, 6, seed=1).requires_grad_(), normal(2, 10, 4, 4, seed=2)
    quantize(layer, recipe=r)(x).backward(grad)
    wq, gq = r.forward.weight(layer.weight.detach()[None]), INT8(grad)
    total: Any = 0
    for position, (index, start) in itertools.product(positions(3), enumerate(range(0, 10, 4))):
        part = torch.nn.functional.conv_transpose2d(
            codes(gq)[:, start : start + 4], codes(wq)[0][start : start + 4] * position
        ).float()
        total = total + part * (gq.scale.view(()) * wq.scale[0, index, 0, 0, 0])  # type: ignore
    assert torch.equal(x.grad, total)


SCALED = {
    "e4m3": Quantizer(format=e4m3),
    "e5m2": Quantizer(format=e5m2),
    "fp16 unscaled": Quantizer(format=fp16, range=None),
    "e4m3 with e8m0 scales": Quantizer(format=e4m3, scale=Scale(e8m0)),
    "e4m3 in blocks of 32 with e8m0 scales": Quantizer(
        format=e4m3, scale=Scale(e8m0), granularity=Granularity(((-1, 32),), rest="each")
    ),
    "e4m3 per channel": Quantizer(format=e4m3, granularity=per_axis(0)),
}


@pytest.mark.parametrize("name", SCALED)
def test_float_formats_stay_within_their_bound_of_float64(name: str) -> None:
    """All three products, blocks along the summed axis of each."""
    base = SCALED[name]
    block = base.granularity.rest == "each"
    tensor = per_tensor
    along = {
        "x": Granularity(((1, 32),), rest="each") if block else tensor,
        "w": Granularity(((2, 32),), rest="each") if block else tensor,
        "g": Granularity(((1, 32),), rest="each") if block else tensor,
        "w_back": Granularity(((1, 32),), rest="each") if block else tensor,
        "g2": Granularity(((0, 32),), rest="each") if block else tensor,
        "x_back": Granularity(((0, 32),), rest="each") if block else tensor,
    }
    q = {role: base if base.range is None else each(base, own) for role, own in along.items()}
    r = recipe(q["x"], q["w"], q["g"], q["g2"], w_back=q["w_back"], x_back=q["x_back"])
    torch.manual_seed(0)
    layer = nn.Linear(80, 40, bias=False)
    x, grad = normal(70, 80, seed=1), normal(70, 40, seed=2)
    w = layer.weight.detach()[None]

    def value(role: str, x: Tensor) -> Tensor:
        return q[role](x).dequantize().double()

    wx, ww, wg = value("x", x), value("w", w)[0], value("g", grad)
    wb, g2, xb = value("w_back", w)[0], value("g2", grad), value("x_back", x)
    expected = [(wx, ww.T), (wg, wb), (g2.T, xb)]
    x.requires_grad_()
    quantized: Any = quantize(layer, recipe=r)
    output = quantized(x)
    output.backward(grad)
    for found, (a, b) in zip((output, x.grad, quantized.weight.grad), expected, strict=True):
        bound = (a.shape[1] + 3) * 2.0**-23 * (a.abs() @ b.abs())  # +3: the scales' roundings
        assert bool(((found.detach().double() - a @ b).abs() <= bound).all())


def test_blocks_of_narrow_floats_are_each_exact() -> None:
    """One e4m3 block of 32 whose fp32 sum would depend on its order: it is the exact sum."""
    q = Quantizer(format=e4m3, range=None)
    x = torch.tensor([448.0, *[2.0**-9] * 30, -448.0]).repeat(2)[None]
    w = torch.ones(1, 1, 64) * 448
    a, b = q(x)._replace(scale=torch.ones(1, 2), block=(1, 32)), q(w)
    found = multiply(Product(Linear(), "forward"), a, b, x)
    assert found.item() == 2 * 30 * 2.0**-9 * 448


def test_a_mixed_product_takes_codes_on_one_side_and_floats_on_the_other() -> None:
    layer = nn.Linear(16, 4, bias=False)
    r = recipe(UINT8, Quantizer(format=e4m3), OFF, OFF)
    x = normal(3, 16)
    exact = UINT8(x).dequantize().double() @ r.forward.weight(
        layer.weight.detach()
    ).dequantize().double().T  # fmt: skip
    found = quantize(layer, recipe=r)(x).double()
    assert (found - exact).abs().max() < 16 * 2.0**-22 * exact.abs().max()


REFUSED = {
    "input per feature": (
        recipe(each(INT8, per_axis(1)), INT8), (2, 8), r"input of forward: .*axis 1 of shape"),
    "weight per input": (
        recipe(INT8, each(INT8, per_axis(2))), (2, 8), r"weight of forward: .*axis 2 of shape"),
    "gradient per output for grad_input": (
        recipe(INT8, INT8, each(INT8, per_axis(1))), (2, 8),
        r"grad_output of grad_input: .*axis 1 of shape"),
    "gradient per sample for grad_weight": (
        recipe(INT8, INT8, INT8, each(INT8, per_sample)), (2, 8),
        r"grad_output of grad_weight: .*axis 0 of shape"),
    "weight in 1x4 blocks, reused by grad_input": (
        recipe(INT8, each(INT8, Granularity(((2, 4),), rest="each"))), (2, 8),
        r"weight of grad_input: .*axis 1 of shape"),
    "input in 1x4 blocks, reused by grad_weight": (
        recipe(each(INT8, Granularity(((1, 4),), rest="each")), INT8), (2, 8),
        r"input of grad_weight: .*axis 0 of shape"),
    "tokens of the gradient": (
        recipe(INT8, INT8, INT8, each(INT8, per_token)), (2, 3, 8),
        r"grad_output of grad_weight: .*axis [01] of shape"),
    "blocks that do not nest": (
        recipe(cut(INT8, (1, 4)), cut(INT8, (2, 3))), (2, 8),
        r"forward: blocks of 4 and 3 along a sum of 8 do not nest"),
    "an axis it does not have": (
        recipe(each(INT8, per_axis(3)), INT8), (2, 8), r"axis 3, but the tensor has 2 axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_names_layer_product_and_axis(name: str) -> None:
    r, shape, message = REFUSED[name]
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.raises(ValueError, match=rf"(?s)layer '[01]': .*{message}"):
        quantize(model, recipe=r)(normal(*shape)).sum().backward()


def test_a_memory_of_samples_is_refused_at_conversion() -> None:
    from quantizers import ema

    bad = Quantizer(format=IntFormat(8), granularity=per_sample, range=ema())
    with pytest.raises(ValueError, match=r"layer '0': .*cuts axis 0, whose size changes"):
        quantize(nn.Sequential(nn.Linear(8, 8)), recipe=recipe(bad, INT8))


SHAPES = {
    "2-D": ((4, 6), (6, 5)),
    "batched": ((3, 4, 6), (3, 6, 5)),
    "broadcast left": ((4, 6), (2, 3, 6, 5)),
    "broadcast right": ((2, 3, 4, 6), (6, 5)),
    "broadcast both": ((2, 1, 4, 6), (3, 6, 5)),
    "one row": ((3, 1, 6), (3, 6, 1)),
    "no rows": ((3, 0, 6), (3, 6, 5)),
    "empty batch": ((0, 4, 6), (0, 6, 5)),
    "empty sum": ((3, 4, 0), (3, 0, 5)),
}


@pytest.mark.parametrize("noncontiguous", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_matmul_on_codes(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], noncontiguous: bool
) -> None:
    r = recipe(UINT8, INT8)
    a, b = normal(*shapes[0], seed=1), normal(*shapes[1], seed=2)
    if noncontiguous:
        a, b = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (a, b))
    a, b = a.requires_grad_(), b.requires_grad_()
    output = quantize(Matmul(), recipe=r)(a, b)
    grad = normal(*output.shape, seed=3)
    output.backward(grad)
    aq, bq, gq = UINT8(a.detach()), INT8(b.detach()), INT8(grad)
    av, bv = codes(aq).requires_grad_(), codes(bq).requires_grad_()
    sums = av @ bv
    sa, sb, sg = (q.scale.view(()) for q in (aq, bq, gq))  # type: ignore[union-attr]
    assert torch.equal(output, sums.detach().float() * (sa * sb))
    ga, gb = torch.autograd.grad(sums, (av, bv), codes(gq))
    # broadcasting adds scaled products in fp32 in the layer, codes in fp64 here
    torch.testing.assert_close(a.grad, ga.float() * (sg * sb), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b.grad, gb.float() * (sg * sa), rtol=1e-5, atol=1e-6)


def test_matmul_with_scales_of_rows_and_columns() -> None:
    """Attention's granularity: one scale a token on both sides, folded where the sum runs along."""
    rows, columns = each(INT8, per_token), each(INT8, per_axis(0, 1))
    a, b = normal(2, 4, 8, seed=1).requires_grad_(), normal(2, 8, 5, seed=2).requires_grad_()
    output = quantize(Matmul(), recipe=recipe(rows, columns, OFF, OFF))(a, b)
    output.sum().backward()
    plain = torch.matmul(a, b)
    ga, gb = torch.autograd.grad(plain.sum(), (a, b))
    for found, exact in ((output, plain), (a.grad, ga), (b.grad, gb)):
        assert (found - exact).norm() < 0.02 * exact.norm()  # type: ignore[operator]


def test_vectors_are_refused_by_matmul() -> None:
    with pytest.raises(ValueError, match=r"at least two axes.*unsqueeze"):
        quantize(Matmul())(torch.ones(4), torch.ones(4, 3))


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8)], ids=str)
def test_zero_rows_and_channels_stay_exact_zeros(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(8, 4, bias=False)
    layer.weight.data[1] = 0
    x = normal(*shape)
    x[1] = 0
    quantized = quantize(layer, recipe=recipe(each(UINT8, per_sample), CHANNELS))
    x.requires_grad_()
    output = quantized(x)
    output.sum().backward()
    assert bool((output[..., 1] == 0).all()) and bool((output[1] == 0).all())
    assert bool(torch.isfinite(x.grad).all()) and bool((quantized.weight.grad != 0).any())


@pytest.mark.parametrize("name", ["int8", "bf16", "fp16"])
@pytest.mark.parametrize("layer", [nn.Linear(12, 8), nn.Conv2d(6, 8, 3)], ids=str)
def test_elements_kept_in_16_bits_give_the_same_products(
    layer: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: see call.CASTING."""
    x = normal(*((5, 12) if isinstance(layer, nn.Linear) else (2, 6, 5, 5)))
    grads, seen = [], []
    for devices in ({"cuda"}, {"cpu", "cuda"}):
        monkeypatch.setattr("qtrain.products.call.CASTING", devices)
        model = quantize(nn.Sequential(copy.deepcopy(layer)), recipe=name)
        real = call.Call.quantize

        def watched(self: Any, kind: Any, *args: Any, real: Any = real, **more: Any) -> QTensor:
            q: QTensor = real(self, kind, *args, **more)
            if kind == "grad_weight":
                seen.append(q.elements.dtype)
            return q

        with monkeypatch.context() as within:
            within.setattr(call.Call, "quantize", watched)
            model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert seen[0] is torch.float32 and seen[-1] in (torch.bfloat16, torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("fmt", [fp16, bf16], ids=str)
def test_a_cast_has_the_elements_of_its_format(fmt: FloatFormat) -> None:
    """Every upper half of an fp32 number, with lower halves at, below and above ties."""
    upper = torch.arange(2**16, dtype=torch.int64).unsqueeze(1) << 16
    lower = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = (upper + lower).to(torch.int32).view(torch.float32)
    by = Quantizer(format=fmt, range=None)
    assert by.half is not None and torch.equal(
        by(x).elements.nan_to_num(1.5), x.to(by.half).float().nan_to_num(1.5)
    )
    assert Quantizer(format=fmt, range=None, rounding=stochastic()).half is None
    assert Quantizer(format=FloatFormat(5, 2), range=None).half is None and INT8.half is None
