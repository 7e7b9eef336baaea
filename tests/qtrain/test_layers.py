"""Quantized layers, every geometry, against torch's own layers in float64 on the codes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from layer_oracle import step
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import Forward, GradInput, GradWeight, Recipe, quantize, recipes
from qtrain.products.convolution import Convolution
from quantizers import OFF, IntFormat, Quantizer, bf16, fold, int8, minmax, stochastic


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NEAREST = replace(recipes.int8(), grad_input=GradInput(grad_output=Quantizer(format=int8)))
WHOLE = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
INTEGER = Recipe(
    name="all integer, weights affine per tensor",
    forward=Forward(input=WHOLE, weight=WHOLE),
    grad_input=GradInput(grad_output=WHOLE),
    grad_weight=GradWeight(grad_output=Quantizer(format=IntFormat(12))),
)
RECIPES = {"int8": NEAREST, "all integer": INTEGER}


@dataclass
class Case:
    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    channels_last: bool = False


def conv(dims: int, inputs: int, outputs: int, kernel: Any, **kwargs: Any) -> nn.Module:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return kind(inputs, outputs, kernel, **kwargs)


def deconv(dims: int, inputs: int, outputs: int, kernel: Any, **kwargs: Any) -> nn.Module:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return kind(inputs, outputs, kernel, **kwargs)


# torch's own remark on layers that pad unevenly
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def cases() -> list[Case]:
    torch.manual_seed(1)
    return [
        Case("linear 1-D", nn.Linear(7, 5), (7,)),
        Case("linear 2-D", nn.Linear(7, 5), (6, 7)),
        Case("linear 3-D", nn.Linear(7, 5), (2, 3, 7)),
        Case("linear 4-D no bias", nn.Linear(7, 5, bias=False), (2, 3, 2, 7)),
        Case("linear one output", nn.Linear(7, 1), (6, 7)),
        Case("linear long sum", nn.Linear(3000, 2), (2, 3000)),
        Case("linear empty batch", nn.Linear(7, 5), (0, 7)),
        Case("linear empty 3-D", nn.Linear(7, 5), (2, 0, 7)),
        Case("conv1d", conv(1, 4, 6, 3), (2, 4, 9)),
        Case("conv1d unbatched", conv(1, 4, 6, 3, padding=1), (4, 9)),
        Case("conv1d same, even kernel", conv(1, 4, 6, 4, padding="same"), (2, 4, 9)),
        Case("conv2d", conv(2, 4, 6, 3, padding=1), (2, 4, 7, 8)),
        Case("conv2d channels_last", conv(2, 4, 6, 3), (2, 4, 7, 8), (), True),
        Case("conv2d 1x1", conv(2, 4, 6, 1, bias=False), (2, 4, 5, 5)),
        Case("conv2d stride, uneven", conv(2, 3, 4, (3, 2), stride=(2, 3)), (2, 3, 9, 8)),
        Case("conv2d dilation", conv(2, 3, 4, 3, dilation=(2, 1), padding=(2, 0)), (2, 3, 9, 8)),
        Case("conv2d groups", conv(2, 6, 4, 3, groups=2, padding=1), (2, 6, 5, 5)),
        Case("conv2d depthwise", conv(2, 6, 12, 3, groups=6), (2, 6, 5, 5)),
        Case("conv2d valid", conv(2, 3, 4, 3, padding="valid"), (2, 3, 6, 6)),
        Case("conv2d same, dilated", conv(2, 3, 4, (2, 4), dilation=3, padding="same"),
             (2, 3, 9, 8)),
        Case("conv2d unbatched groups", conv(2, 6, 4, 3, groups=2), (6, 5, 5)),
        Case("conv2d empty batch", conv(2, 3, 4, 3, padding=1), (0, 3, 5, 5)),
        Case("conv2d long sum", conv(2, 160, 2, 3), (1, 160, 4, 4)),
        Case("conv2d reflect", conv(2, 3, 4, 3, padding=2, padding_mode="reflect"), (2, 3, 6, 6)),
        Case("conv2d circular", conv(2, 3, 4, 3, padding=(1, 2), padding_mode="circular"),
             (2, 3, 6, 6)),
        Case("conv2d replicate, same", conv(2, 3, 4, 4, padding="same", padding_mode="replicate"),
             (2, 3, 6, 6)),
        Case("conv3d", conv(3, 2, 4, (3, 2, 1), padding=(1, 0, 0)), (2, 2, 4, 5, 3)),
        Case("conv3d groups unbatched", conv(3, 4, 4, 2, groups=4, stride=2), (4, 4, 5, 4)),
        Case("deconv1d", deconv(1, 4, 6, 3, stride=2), (2, 4, 6)),
        Case("deconv1d unbatched", deconv(1, 4, 6, 3, padding=1, output_padding=1, stride=2),
             (4, 6)),
        Case("deconv2d", deconv(2, 4, 6, 3, padding=1), (2, 4, 5, 6)),
        Case("deconv2d groups", deconv(2, 4, 6, (3, 2), stride=2, groups=2, padding=1),
             (2, 4, 5, 6)),
        Case("deconv2d dilation no bias", deconv(2, 4, 3, 2, dilation=2, bias=False), (2, 4, 5, 6)),
        Case("deconv2d output_size", deconv(2, 4, 3, 3, stride=2), (2, 4, 5, 6), ([12, 14],)),
        Case("deconv2d channels_last", deconv(2, 4, 3, 3, stride=2), (2, 4, 5, 6), (), True),
        Case("deconv2d empty batch", deconv(2, 4, 3, 3, stride=2), (0, 4, 5, 6)),
        Case("deconv3d groups", deconv(3, 4, 2, 2, stride=(2, 1, 1), groups=2), (2, 4, 3, 3, 4)),
    ]  # fmt: skip


CASES = cases()


def ids(case: Any) -> str:
    return str(case.name)


def run(layer: Any, x: Tensor, grad: Tensor | None, *args: Any) -> list[Tensor | None]:
    """Output, grad_input, grad_weight, grad_bias."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    output = layer(x, *args)
    output.backward(torch.ones_like(output) if grad is None else grad)
    bias = None if layer.bias is None else layer.bias.grad
    return [output.detach(), x.grad, layer.weight.grad, bias]


def prepared(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    layer = copy.deepcopy(case.layer)
    x = normal(*case.shape, seed=3) + 0.3
    if case.channels_last:
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        shape = layer(x, *case.args).shape
    return layer, x, normal(*shape, seed=4)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_layer_computes_its_three_products_on_codes(case: Case, recipe: Recipe) -> None:
    layer, x, grad = prepared(case)
    expected = step(layer, recipe, x, grad, *case.args)
    output, grad_input, grad_weight, grad_bias = run(
        quantize(layer, recipe=recipe), x, grad, *case.args
    )
    assert torch.equal(output, expected.output)
    if getattr(case.layer, "padding_mode", "zeros") == "zeros":
        assert torch.equal(grad_input, expected.grad_input)
    else:  # the padding's own gradient adds scaled values, in fp32
        torch.testing.assert_close(grad_input, expected.grad_input, rtol=1e-5, atol=1e-6)
    error = (grad_weight.double() - expected.grad_weight).abs()  # type: ignore[union-attr]
    assert bool((error <= expected.grad_weight_bound).all())
    if expected.grad_bias is None:
        assert grad_bias is None
    else:
        torch.testing.assert_close(grad_bias, expected.grad_bias, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_an_off_layer_is_torchs_bit_for_bit(case: Case) -> None:
    layer, x, grad = prepared(case)
    plain = run(layer, x, grad, *case.args)
    off = run(quantize(layer, recipe="fp32"), x, grad, *case.args)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(plain, off, strict=True))


ONLY = {
    "forward": Recipe(name="a", forward=Forward(input=WHOLE, weight=OFF),
                      grad_weight=GradWeight(input=OFF)),
    "grad_input": Recipe(name="b", grad_input=GradInput(grad_output=Quantizer(format=int8))),
    "grad_input's weight": Recipe(name="c", grad_input=GradInput(weight=WHOLE)),
    "grad_weight": Recipe(name="d", grad_weight=GradWeight(grad_output=Quantizer(format=int8))),
    "grad_weight's input": Recipe(name="e", grad_weight=GradWeight(input=WHOLE)),
}  # fmt: skip
TOUCHED = {"forward": {0}, "grad_input": {1}, "grad_weight": {2}}


SOME = [case for case in CASES if case.name in (
    "linear 1-D", "linear 3-D", "linear empty batch", "conv1d same, even kernel",
    "conv2d channels_last", "conv2d groups", "conv2d unbatched groups", "conv2d reflect",
    "conv3d", "deconv2d groups", "deconv2d output_size",
)]  # fmt: skip


@pytest.mark.parametrize("only", ONLY)
@pytest.mark.parametrize("case", SOME, ids=ids)
def test_a_product_whose_operands_are_off_is_torchs_bit_for_bit(case: Case, only: str) -> None:
    layer, x, grad = prepared(case)
    plain = run(layer, x, grad, *case.args)
    found = run(quantize(layer, recipe=ONLY[only]), x, grad, *case.args)
    touched = TOUCHED[only.split("'")[0]]
    for index, (a, b) in enumerate(zip(plain, found, strict=True)):
        if index in touched:
            assert a is not None and (0 in case.shape or not torch.equal(a, b))
        elif index == 3 and 2 in touched:  # the bias: torch's call would be a second grad_weight
            torch.testing.assert_close(a, b)
        else:
            assert a is b is None or torch.equal(a, b), index


def test_a_product_that_is_off_runs_under_autocast_as_torchs() -> None:
    for case in CASES[1], CASES[11]:
        layer, x, grad = prepared(case)
        quantized = quantize(layer, recipe=ONLY["grad_input"])
        with torch.autocast("cpu", torch.bfloat16):
            plain = run(layer, x, grad.bfloat16())
            found = run(quantized, x, grad.bfloat16())
        assert found[0] is not None and found[0].dtype == torch.bfloat16
        for index in (0, 2, 3):
            assert torch.equal(plain[index], found[index]), index


@pytest.mark.parametrize("case", CASES[1:3] + CASES[11:13] + CASES[16:17], ids=ids)
def test_stochastic_gradients_take_the_slots_own_key(case: Case) -> None:
    recipe = recipes.int8()
    layer, x, grad = prepared(case)
    quantized: Any = quantize(layer, seed=11)
    for count in (1, 2):
        key = fold(fold(quantized.product.noise_key, count), 2 + 6)
        expected = step(layer, recipe, x, grad, key=key)
        assert torch.equal(run(quantized, x, grad)[1], expected.grad_input)


@pytest.mark.parametrize("view", ["transposed", "sliced", "expanded"])
def test_strided_inputs_give_the_same_bits(view: str) -> None:
    torch.manual_seed(0)
    x = normal(6, 8, 8, seed=1)
    shaped = {"transposed": x.transpose(1, 2), "sliced": x[::2, :, 1::2],
              "expanded": x[:1].expand(6, 8, 8)}[view]  # fmt: skip
    for layer in (nn.Linear(shaped.shape[-1], 3), nn.Conv1d(8, 3, 3)):
        quantized = quantize(layer, recipe=NEAREST)
        for a, b in zip(
            run(quantized, shaped, None), run(quantized, shaped.contiguous(), None), strict=True
        ):
            if a is not None and a.shape != quantized.weight.shape:  # type: ignore[operator]
                assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_keep_theirs_and_stay_near(dtype: torch.dtype) -> None:
    for case in CASES[1], CASES[11], CASES[30]:
        layer, x, grad = prepared(case)
        plain = run(layer, x, grad)
        found = run(quantize(layer.to(dtype)), x.to(dtype), grad.to(dtype))
        for a, b in zip(plain, found, strict=True):
            assert a is not None and b is not None and b.dtype == dtype
            assert (a - b).norm() < 0.05 * a.norm()  # 8 bits: about 1 %


def test_autocast_output_and_gradients() -> None:
    for case in CASES[1], CASES[11]:
        layer, x, grad = prepared(case)
        quantized = quantize(layer, recipe=NEAREST)
        full = run(quantized, x, grad.bfloat16().float())
        with torch.autocast("cpu", torch.bfloat16):
            half = run(quantized, x, grad.bfloat16())
            inside = quantize(layer.double())(x.double())
        assert half[0] is not None and half[0].dtype == torch.bfloat16
        assert torch.equal(half[0], full[0].bfloat16())  # type: ignore[union-attr]
        assert torch.equal(half[1], full[1])  # the codes do not know of autocast
        assert inside.dtype == torch.float64  # which leaves fp64 alone


def test_an_infinite_gradient_reaches_the_parameters() -> None:
    layer = quantize(nn.Linear(4, 3))
    x = normal(2, 4).requires_grad_()
    layer(x).backward(torch.tensor([[float("inf"), 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert not torch.isfinite(x.grad).all()  # type: ignore[arg-type]
    assert not torch.isfinite(layer.weight.grad).all()  # type: ignore[arg-type]
    assert not torch.isfinite(layer.bias.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", ["weight", "bias", "input", "all parameters"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: str) -> None:
    torch.manual_seed(0)
    for layer in (nn.Linear(6, 4), nn.Conv2d(6, 4, 1)):
        x = normal(2, 6) if isinstance(layer, nn.Linear) else normal(2, 6, 3, 3)
        reference = run(quantize(layer), x, None)
        quantized: Any = quantize(layer)
        for name, parameter in quantized.named_parameters():
            parameter.requires_grad_(frozen not in (name, "all parameters"))
        x.requires_grad_(frozen != "input")
        quantized(x).sum().backward()
        found = [None, x.grad, quantized.weight.grad, quantized.bias.grad]
        gone = {"input": {1}, "weight": {2}, "bias": {3}, "all parameters": {2, 3}}[frozen]
        for index in (1, 2, 3):
            if index in gone:
                assert found[index] is None
            else:
                assert torch.equal(found[index], reference[index])


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_width_is_exact(bits: int) -> None:
    recipe = replace(
        recipes.int8(bits),
        grad_input=GradInput(grad_output=Quantizer(format=IntFormat(bits))),
        grad_weight=GradWeight(grad_output=Quantizer(format=IntFormat(bits))),
    )
    for case in CASES[5], CASES[11]:
        layer, x, grad = prepared(case)
        expected = step(layer, recipe, x, grad)
        found = run(quantize(layer, recipe=recipe), x, grad)
        assert torch.equal(found[0], expected.output)
        assert torch.equal(found[1], expected.grad_input)
        assert torch.equal(found[2].double(), expected.grad_weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_an_input_that_is_no_real_number_is_refused(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"layer '0': input is torch\..*need a floating-point"):
        quantize(model)(torch.ones(2, 4).to(dtype))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)], ids=repr)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1, 3, 5, 5)])
def test_a_wrong_number_of_axes_is_refused(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layer '0': expected 3 or 4 axes .* got shape"):
        quantize(nn.Sequential(layer))(torch.ones(shape))


def test_second_derivatives_are_refused() -> None:
    x = normal(2, 4).requires_grad_()
    loss = quantize(nn.Linear(4, 3))(x).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_activation_rounds_outputs_and_overflow_is_infinite() -> None:
    layer = nn.Linear(4, 3)
    recipe = replace(recipes.fp16(), name="fp16")
    x = normal(5, 4)
    output = quantize(layer, recipe=recipe)(x)
    assert torch.equal(output, output.half().float()) and output.dtype == torch.float32
    assert torch.isinf(quantize(layer, recipe=recipe)(x * 1e5)).any()
    half = F.linear(x.half().float(), layer.weight.half().float()) + layer.bias
    assert torch.equal(output, half.half().float())


def test_bf16_recipe_is_bf16_operands_with_fp32_sums() -> None:
    layer, x = nn.Linear(16, 8), normal(4, 16)
    found = run(quantize(layer, recipe="bf16"), x, normal(4, 8, seed=2))
    w, g = layer.weight.bfloat16().float(), normal(4, 8, seed=2).bfloat16().float()
    assert torch.equal(found[0], (x.bfloat16().float() @ w.T + layer.bias).bfloat16().float())
    assert torch.equal(found[1], g @ w)
    torch.testing.assert_close(found[2], g.T @ x.bfloat16().float(), rtol=1e-6, atol=1e-6)


def test_evaluation_takes_the_running_range_and_no_noise_count() -> None:
    layer: Any = quantize(nn.Linear(4, 3))
    for seed in range(3):
        layer(normal(5, 4, seed=seed))
    assert int(layer.product.noise_count) == 3
    layer.eval()
    x = normal(6, 4, seed=9) * 3
    with torch.no_grad():
        whole = layer(x)
        assert torch.equal(torch.cat([layer(row[None]) for row in x]), whole)
    assert int(layer.product.noise_count) == 3


def test_the_bf16_copy_of_the_gradient_is_its_own() -> None:
    """grad_weight never sees the 8-bit layer gradient: a spike does not cost it small entries."""
    layer: Any = quantize(nn.Linear(4, 3, bias=False))
    grad = torch.full((2, 3), 1e-4)
    grad[0, 0] = 1.0
    x = torch.ones(2, 4)
    layer(x).backward(grad)
    exact = torch.tensor([1.0 + 1e-4, 2e-4, 2e-4])
    assert torch.allclose(layer.weight.grad[:, 0], exact, rtol=2**-8)
    assert recipes.int8().grad_weight.grad_output.format == bf16  # type: ignore[union-attr]


def test_noise_is_unbiased_through_a_layer() -> None:
    """n = 400 steps: the mean of the stochastic grad_input nears its full-precision value."""
    layer: Any = quantize(nn.Linear(3, 2, bias=False))
    noisy = Quantizer(format=IntFormat(3), rounding=stochastic())
    recipe = Recipe(name="n", grad_input=GradInput(grad_output=noisy))
    layer = quantize(nn.Linear(3, 2, bias=False), recipe=recipe)
    grad = normal(4, 2, seed=5)
    total = sum(run(layer, torch.ones(4, 3), grad)[1] for _ in range(400))
    exact = grad @ layer.weight.detach()
    step_size = grad.abs().max() / 3
    sigma = 0.5 * step_size * layer.weight.detach().norm(dim=0) / 400**0.5
    assert bool(((total / 400 - exact).abs() < 5 * sigma).all())  # type: ignore[union-attr]


@pytest.mark.parametrize("channels", [1, 2])
def test_volumes_have_the_same_bits_in_any_layout(channels: int) -> None:
    """Also of one channel, whose stride says nothing."""
    layer = nn.Conv3d(channels, 3, (2, 3, 3), (1, 1, 3), (0, 2, 0))
    x = torch.randn(5, channels, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    last: Any = torch.channels_last_3d
    for recipe in (recipes.int8(), recipes.bf16()):
        model: Any = quantize(layer, recipe=recipe)
        expected = model(x)
        assert torch.allclose(expected, layer(x), atol=0.1)
        wide = x.repeat(1, 2, 1, 1, 1).contiguous(memory_format=last)
        for other in (x.clone(memory_format=last), wide[:, :channels]):
            torch.testing.assert_close(model(other), expected, rtol=1e-6, atol=1e-6)
        model.weight.data = model.weight.data.clone(memory_format=last)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [(2, 2), (1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_few_channels_strided_by_one_pixel_keep_to_their_memory(
    stride: tuple[int, int], groups: int
) -> None:
    """Without AVX-512, oneDNN wrote past its own for their grad_weight, which ends processes."""
    seed = torch.Generator().manual_seed(0)
    last = {"memory_format": torch.channels_last}
    weight = torch.randn(4, 2 // groups, 1, 1, generator=seed)
    x = torch.randn(20, 2, 8, 8, generator=seed).contiguous(**last)
    operation = Convolution(stride, (0, 0), (1, 1), groups)
    grad_output = torch.randn(20, 4, *x[0, 0, :: stride[0], :: stride[1]].shape, generator=seed)
    like = operation.canonical(weight)
    for _ in range(100):
        found = operation.product("grad_weight", grad_output.contiguous(**last), x, like)
    exact = operation.product("grad_weight", grad_output.double(), x.double(), like.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


KINDS_OF_CONVOLUTION = [
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
]  # fmt: skip


def stepped(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of a sum of the output."""
    x = x.detach().requires_grad_()
    output = layer(x)
    output.backward(torch.ones_like(output))
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(grad is not None for grad in grads)
    return [output.detach(), *grads]  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:.*zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:qtrain. outside the recipe:UserWarning")
@pytest.mark.parametrize("how", [4, 8, 12, 16, "bf16", "banner2018"])
@pytest.mark.parametrize("kind", KINDS_OF_CONVOLUTION, ids=lambda kind: kind.__name__)
def test_layouts_and_empty_tensors_are_torchs(kind: Any, how: int | str) -> None:
    """Few channels, whose strides say little; no batch, or channels; an empty output."""
    torch.manual_seed(0)
    space = kind.__name__[-2]
    dims, transposed = int(space), "Transpose" in kind.__name__
    formats = [torch.contiguous_format]
    formats += {2: [torch.channels_last], 3: [torch.channels_last_3d]}.get(dims, [])
    channels = [(1, 1, 1), (1, 4, 1), (1, 1, 4), (2, 4, 6), (4, 4, 4)]
    channels += [] if transposed else [(1, 0, 2)]
    shapes: list[tuple[int, list[int], int, int, int]] = [
        (2, [5] * dims, 3, 1, 1), (2, [4] * dims, 2, 2, 0), (0, [5] * dims, 3, 1, 1),
    ]  # fmt: skip
    shapes += [(2, [1] * dims, 2, 2, 1)] if transposed else []  # of nothing
    for (groups, inside, outside), (
        batch,
        size,
        kernel,
        stride,
        padding,
    ), layout in itertools.product(channels, shapes, formats):
        plain = kind(inside, outside, kernel, stride=stride, padding=padding, groups=groups)
        x = torch.randn(batch, inside, *size).contiguous(memory_format=layout)
        plain = plain.to(memory_format=layout)
        wanted = stepped(plain, x)
        settings: Any = {"recipe": how} if isinstance(how, str) else {"bits": how}
        model = quantize(nn.Sequential(plain), **settings)
        model.zero_grad()
        found = stepped(model, x)
        case = f"{groups=} {inside=} {outside=} {batch=} {size=} {kernel=} {layout=}"
        for a, b in zip(wanted, found, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, case
            # of few channels and bits, stochastic codes say little
            if how in (12, 16) or (how != 4 and min(inside, outside) > 1):
                assert (a - b).norm() <= 0.25 * a.norm() + 1e-6, case


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_window_of_lists_is_one_of_tuples(kind: Any) -> None:
    layer = quantize(nn.Sequential(kind(2, 3, 3, stride=2)), recipe="bf16")
    x = torch.ones(1, 2, 7, 7)
    expected = layer(x)
    layer[0].stride, layer[0].padding = [2, 2], [0, 0]
    assert torch.equal(layer(x), expected)
