"""grad_weight on a CPU's bf16 units, against sums in fp64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from half_cases import CASES, of, task, whole
from torch import Tensor, nn

from qtrain import Recipe, quantize, recipes
from qtrain.conversion.summary import summary
from qtrain.products.convolution import Convolution
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import RoundedSums
from qtrain.products.engines.half import engine as module
from qtrain.products.engines.half.engine import HalfUnits
from qtrain.products.engines.task import ANY, Task
from qtrain.products.operations import BatchedMatmul, Linear, Operation
from qtrain.products.product import Product
from quantizers import QTensor, kernels
from quantizers.kernels.serving import imported

#: whatever the size of a product
ENGINE = HalfUnits(0, 0)
NAME = ENGINE.name

_UNITS = imported("quantizers.kernels.compiled")
#: not where the engine is refused: then its sums are wrong
pytestmark = pytest.mark.skipif(
    _UNITS is None or not _UNITS.has_bf16(), reason="this processor has no AVX512-BF16, or has AMX"
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product of fp32 units."""

    def refused(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("the kernel did not serve")

    monkeypatch.setattr(RoundedSums, "product", refused)


def test_they_are_admitted() -> None:
    assert ENGINE.admitted_on("cpu") and HalfUnits().admitted_on("cpu")
    assert not ENGINE.admitted_on("cuda")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kept", ["uint8", "int8", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_sums_that_fp32_holds_are_exact(name: str, kept: str) -> None:
    """In every layout, of every dtype; with a zero point and a scale."""
    product, output, x, like = of(name)
    dtype = getattr(torch, kept)
    low, high = (-128, 127) if dtype.is_signed else (0, 255)
    a, b = whole(output, -3, 3, 1), whole(x.shape, low, high, 2)
    layouts = [torch.contiguous_format, torch.channels_last][: 2 if x.dim() == 4 else 1]
    sources = torch.float32, torch.bfloat16
    for layout, last, source in itertools.product(layouts, layouts, sources):
        for zero, scale in ((None, None), (77, 0.3)):
            if zero is not None and dtype.is_floating_point:
                continue
            exact = product.run(a.double(), (b - (zero or 0)).double(), like.double())
            g = a.to(source).contiguous(memory_format=layout)
            codes = b.to(dtype).contiguous(memory_format=layout)
            own = like
            if last == torch.channels_last:
                own = like.flatten(0, 1).contiguous(memory_format=last).view_as(like)
            point = None if zero is None else torch.full((1,) * b.dim(), zero, dtype=torch.int32)
            scales = () if scale is None else (torch.tensor(scale),)
            got = ENGINE.of_quantized(
                task(product, g, codes), QTensor(g), QTensor(codes, zero_point=point), own,
                Epilogue(scales),
            )  # fmt: skip
            exact = exact.float() if scale is None else exact.float() * scales[0]
            assert got.dtype == torch.float32 and torch.equal(got, exact), (layout, source, zero)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", CASES)
def test_sums_are_within_contract_2s_bound(name: str) -> None:
    product, output, x, like = of(name)
    torch.manual_seed(3)
    exponents = whole(output, -40, 20, 4).float()
    a = (torch.randn(output) * 2.0**exponents).bfloat16().float()
    b = whole(x.shape, 0, 255, 5).to(torch.uint8)
    point = torch.tensor(100, dtype=torch.int32)
    got = ENGINE.of_quantized(
        task(product, a, b), QTensor(a), QTensor(b, zero_point=point), like, Epilogue()
    )
    exact = product.run(a.double(), b.double() - 100, like.double())
    reach = product.run(a.double().abs(), (b.double() - 100).abs(), like.double())
    terms = task(product, a, b).terms
    assert ((got - exact).abs() <= terms * 2.0**-23 * reach).all()


@pytest.mark.usefixtures("alone")
def test_subnormal_elements_and_sums_count() -> None:
    """The units themselves take them for 0."""
    product = Product(Linear(), "grad_weight")
    like = torch.zeros(1, 8, 32)
    a = whole((300, 8), -100, 100, 6).float() * 2.0**-133
    b = whole((300, 32), -128, 127, 7).to(torch.int8)
    got = ENGINE.of_quantized(task(product, a, b), QTensor(a), QTensor(b), like, Epilogue())
    exact = product.run(a.double(), b.double(), like.double())
    assert torch.equal(got.double(), exact) and 0 < exact.abs().max() < 2.0**-110


@pytest.mark.parametrize(
    ("a", "b"),
    [(float("inf"), 1.0), (float("nan"), 1.0), (2.0**38, 1.0), (-3e38, 1.0), (1.0, 2.0**18),
     (1.0, 2.0**-27), (1.0, float("nan")), (1.0, float("-inf"))],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 299])
def test_what_the_units_cannot_hold_is_left_to_fp32_units(a: float, b: float, place: int) -> None:
    product, like = Product(Linear(), "grad_weight"), torch.zeros(1, 19, 40)
    g, x = whole((300, 19), -9, 9, 8).bfloat16().float(), whole((300, 40), -9, 9, 9).float()
    own = task(product, g, x)
    assert module._grad_weight(g, x, None, None, 1, [], [], [], []) is not None
    g[place, 18], x[place, 39] = a, b
    assert module._grad_weight(g, x, None, None, 1, [], [], [], []) is None
    got = ENGINE.of_quantized(own, QTensor(g), QTensor(x), like, Epilogue())
    expected = RoundedSums().product(own, g, x, like, epilogue=Epilogue())
    assert torch.equal(got.nan_to_num(1.5), expected.nan_to_num(1.5))


@pytest.mark.parametrize("name", ["linear", "linear, many rows", "matrices", "3x3", "groups"])
def test_threads_change_no_bit(name: str) -> None:
    product, output, x, like = of(name)
    torch.manual_seed(10)
    a, b = torch.randn(output).bfloat16().float(), torch.randn(x.shape).bfloat16().float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            own = task(product, a, b)
            found.append(ENGINE.of_quantized(own, QTensor(a), QTensor(b), like, Epilogue()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_operands_need_no_layout() -> None:
    """Expanded, transposed, cut: as autograd hands gradients on."""
    product, like = Product(BatchedMatmul(), "grad_weight"), torch.zeros(2, 24, 40)
    x = whole((2, 40, 70), -9, 9, 11).to(torch.int8).transpose(1, 2)
    plain = whole((2, 70, 24), -9, 9, 12).float()
    for g in (
        plain, torch.ones(1, 1, 1).expand(2, 70, 24), plain.transpose(1, 2).contiguous().mT,
        torch.cat([plain, plain], 2)[..., 24:],
    ):  # fmt: skip
        got = ENGINE.of_quantized(task(product, g, x), QTensor(g), QTensor(x), like, Epilogue())
        assert torch.equal(got, product.run(g, x.float(), like))


def test_granules_of_a_zero_point_and_of_a_scale() -> None:
    product, like = Product(Linear(), "grad_weight"), torch.zeros(1, 24, 40)
    g, x = whole((70, 24), -9, 9, 13).float(), whole((70, 40), 0, 255, 14).to(torch.uint8)
    points = whole((1, 40), 0, 255, 15).int()
    scale = torch.arange(1.0, 41.0)
    q = QTensor(x, zero_point=points, block=(70, 1))
    got = ENGINE.of_quantized(task(product, g, x), QTensor(g), q, like, Epilogue((scale,)))
    assert torch.equal(got, product.run(g, x.float() - points, like) * scale)


@pytest.mark.parametrize("name", ["linear", "matrices", "3x3", "groups", "1d"])
def test_in_a_graph_it_is_one_operation(name: str) -> None:
    product, output, x, like = of(name)
    operation = product.operation
    g, codes = whole(output, -3, 3, 16).float(), whole(x.shape, 0, 255, 17).to(torch.uint8)
    point, scale = torch.tensor(5, dtype=torch.int32), torch.tensor(0.25)
    window = module._window(operation)
    given = (g, codes, point, scale, module._kind(operation), list(like.shape[3:]), *window)
    expected = product.run(g, codes.float() - 5, like) * scale
    expected = expected.movedim(2, -1) if like.dim() > 3 else expected
    assert torch.equal(module._whole(*given), expected)
    with kernels.eager():  # by fp32 units
        assert torch.equal(module._whole(*given), expected)
    torch.library.opcheck(module._whole.default, given)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_layer_has_the_gradient_of_the_eager_one() -> None:
    torch.manual_seed(18)
    layer, x, grad = quantize(nn.Linear(256, 256)), torch.randn(128, 256), torch.randn(128, 256)
    layer(x).backward(grad)
    eager = layer.weight.grad
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).backward(grad)
    assert torch.equal(layer.weight.grad, eager)


def test_what_is_asked_of_them() -> None:
    def supports(operation: Operation, *shapes: tuple[int, ...], **more: Any) -> bool:
        product = Product(operation, "grad_weight")
        calls = product.multiplications(*shapes)
        given = {"half": torch.bfloat16, "multiplications": calls, **more}
        own = Task(product, *product.terms(*shapes), ANY, ANY, "float", sums=False, **given)
        return HalfUnits().supports(own)

    large = (2048, 512), (2048, 512)
    assert supports(Linear(), *large)
    assert not supports(Linear(), *large, unit=torch.bfloat16)
    assert not supports(Linear(), *large, half=torch.float16)
    assert not supports(Linear(), *large, half=None)
    assert not supports(Linear(), (8, 64), (8, 64))
    maps = (64, 64, 32, 32), (64, 64, 32, 32)
    assert supports(Convolution((1, 1), (1, 1), (1, 1), 1), *maps)
    assert not supports(Convolution((1, 1), (1, 1), (1, 1), 64), *maps)  # depthwise
    assert not supports(Convolution((1, 1), (1, 1), (1, 1), 1, True), *maps)  # transposed
    assert not supports(Convolution((1, 1), (1, 1), (1, 1), 1), maps[0], (64, 3, 32, 32))
    volume = (4, 64, 8, 8, 8)
    assert not supports(Convolution((1,) * 3, (1,) * 3, (1,) * 3, 1), volume, volume)


@pytest.mark.parametrize("recipe", [recipes.int8(), recipes.bf16()])
def test_they_serve_large_layers(recipe: Recipe) -> None:
    model = quantize(nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 4)), recipe=recipe)
    engines = summary(model, torch.randn(512, 128)).engines
    assert engines is not None
    assert engines["0"]["grad_weight"] == NAME
    assert engines["1"]["grad_weight"] == RoundedSums.name
    assert [engine.name for engine in ENGINES["cpu"]].index(NAME) < len(ENGINES["cpu"]) - 1
