"""Triton's products of integers beyond int8 are the exact sums, with their scale and bias."""

from __future__ import annotations

import copy
from typing import Any

import product_cases
import pytest
import torch
from product_cases import Case
from torch import Tensor, nn
from triton_device import DEVICE, served

from qtrain import quantize, recipes
from qtrain.products.convolution import Convolution
from qtrain.products.engines import choice
from qtrain.products.engines.engine import _drawn, _is_exact, _products
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.gpu import layout
from qtrain.products.engines.gpu.digits import convolution, correlation
from qtrain.products.engines.gpu.digits.digits import Cut
from qtrain.products.engines.gpu.digits.engine import TritonDigits
from qtrain.products.engines.gpu.int8.engine import TritonInt8
from qtrain.products.engines.task import Span, Task
from qtrain.products.operations import BatchedMatmul, Linear, Operation
from qtrain.products.product import Product

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CASES: dict[str, Case] = {
    **product_cases.CASES,
    "3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 17, 5, 5), (1, 36, 17, 3, 3)),
    "few channels": (
        Convolution((2, 2), (2, 1), (1, 1), 1), (2, 3, 9, 8), (1, 5, 3, 5, 4)
    ),
    "depthwise": (Convolution((1, 1), (1, 1), (1, 1), 3), (2, 3, 6, 6), (3, 1, 1, 3, 3)),
}  # fmt: skip
#: what a and b are drawn from, and their zero points
OPERANDS: tuple[tuple[Span, Span, int | None, int | None], ...] = (
    (Span(0, 255), Span(0, 255), 200, 3),
    (Span(-32767, 32767), Span(0, 255), None, 128),
    (Span(-128, 127), Span(-2048, 2047), -128, None),
    (Span(0, 65535), Span(-32768, 32767), 65535, 77),
)


@pytest.mark.parametrize("name", CASES)
def test_sums_are_exact(name: str) -> None:
    for n, (product, a, b, like) in enumerate(_products(*CASES[name])):
        if n == 1 and a.dim() == 4:  # layers below are contiguous
            a = a.contiguous(memory_format=torch.channels_last)
        size = product.terms(a.shape, b.shape)
        for i, (one, other, zero_a, zero_b) in enumerate(OPERANDS):
            left, right = _drawn(a.shape, one), _drawn(b.shape, other)
            if i % 2:  # the largest sums
                left, right = left * 0 + one.low, right * 0 + other.high
            left, right = (y.as_strided_(x.shape, x.stride()) for x, y in ((a, left), (b, right)))
            spans = [
                span if zero is None else Span(span.low - span.high, span.high - span.low)
                for span, zero in ((one, zero_a), (other, zero_b))
            ]
            task = Task(product, *size, spans[0], spans[1], zero_points=True)
            assert TritonDigits().supports(task)
            exact = product.run(
                (left - (zero_a or 0)).double(), (right - (zero_b or 0)).double(), like
            )
            zeros = [
                None if z is None else torch.tensor(z, device=DEVICE) for z in (zero_a, zero_b)
            ]
            operands = left.to(DEVICE), right.to(DEVICE), like.to(DEVICE)
            got = TritonDigits().of_shifted(task, *operands, (zeros[0], zeros[1])).cpu()
            assert got.shape == exact.shape and torch.equal(got.double(), exact), (product.kind, i)
            assert got.dtype == (torch.int32 if task.bound < 2**31 else torch.float64)


def test_it_is_admitted() -> None:
    product, a, b, like = next(_products(*CASES["linear"]))
    assert _is_exact(TritonDigits(), product, a, b, like, torch.device(DEVICE))


EIGHT, SIXTEEN, RAW = Span(-128, 127), Span(-32768, 32767), Span(-65535, 65535)


def test_which_products_it_serves() -> None:
    engine, conv = TritonDigits(), Convolution((1, 1), (1, 1), (1, 1), 1)

    def task(a: Span, b: Span, kind: Any, operation: Operation = conv, count: int = 64) -> Task:
        return Task(Product(operation, kind), count, 9, a, b)

    assert not engine.supports(task(EIGHT, EIGHT, "forward"))
    assert not engine.supports(task(Span(-255, 255), EIGHT, "forward")), "TritonInt8's"
    assert engine.supports(task(EIGHT, EIGHT, "grad_weight"))
    assert engine.supports(task(EIGHT, Span(-255, 255), "grad_input"))
    assert engine.supports(task(RAW, RAW, "forward"))
    assert not engine.supports(task(Span(0, 2**17), EIGHT, "forward"))
    assert not engine.supports(task(RAW, RAW, "forward", count=2**20)), "passes 2^53"
    volume = Convolution((1,) * 3, (1,) * 3, (1,) * 3, 1)
    assert not engine.supports(task(RAW, RAW, "forward", volume))


def test_sums_beyond_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of digits, too: from 2^17 terms on, of which an engine's trial on a GPU has some."""
    real, asked = convolution.length, []

    def length(one: Cut, other: Cut, limit: int) -> int:
        asked.append(limit)
        return min(real(one, other, limit), 3000) if limit < 2**31 else 500

    monkeypatch.setattr(convolution, "length", length)
    product, count = Product(Linear(), "grad_weight"), 1500
    a, b = torch.full((count, 2), -32768), torch.full((count, 3), 32767)
    for one, other in ((SIXTEEN, SIXTEEN), (Span(-256, 256), Span(-256, 256))):
        left, right = a.clamp(min=one.low), b.clamp(max=other.high)
        task = Task(product, count, 1, one, other)
        got = TritonDigits().product(task, left.to(DEVICE), right.to(DEVICE), a)
        assert (got.cpu().double() == left[0, 0].double() * right[0, 0] * count).all()
    assert 2**31 in asked


def test_a_gradient_is_cut_before_its_sums_pass_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits, also where they do not divide the pixels."""
    conv = Convolution((1, 1), (1, 1), (1, 1), 1)
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-32768, 32768, (9, 5, 13, 11), generator=generator, dtype=torch.int16)
    b = torch.randint(0, 256, (9, 4, 13, 11), generator=generator, dtype=torch.uint8)
    like = torch.empty(1, 5, 4, 3, 3)
    want = Product(conv, "grad_weight").run(a.double(), b.double(), like)
    real = correlation.length
    monkeypatch.setattr(correlation, "length", lambda *cut: min(real(*cut), 130))
    task = Task(Product(conv, "grad_weight"), 9, 143, SIXTEEN, Span(0, 255))
    got = TritonDigits().product(task, a.to(DEVICE), b.to(DEVICE), like.to(DEVICE))
    assert torch.equal(got.cpu().double(), want)


def test_places_beyond_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout.Layout, "is_wide", True)
    for product, a, b, like in _products(*CASES["transposed"]):
        span = Span(0, 65535)
        task = Task(product, *product.terms(a.shape, b.shape), span, EIGHT)
        left, right = (torch.arange(x.numel()).view(x.shape) for x in (a, b))
        right = right % 256 - 128
        got = TritonDigits().product(task, left.to(DEVICE), right.to(DEVICE), like.to(DEVICE))
        assert torch.equal(got.cpu().double(), product.run(left.double(), right.double(), like))


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (8, 24)),
    "sequence": (lambda: nn.Linear(12, 16), (2, 5, 12)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=4, padding=1), (2, 8, 6, 6)),
    "1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (2, 6, 9)),
}
RECIPES = {
    "banner2018": recipes.banner2018(),
    "banner2018 at 16 bits": recipes.banner2018(16),
    "int8 at 12 bits": recipes.int8(12),
}


def ran(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    leaf = x.detach().requires_grad_()
    output = model(leaf)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    output.backward(direction.to(x.device))
    found = [output, leaf.grad, *(p.grad for p in model.parameters() if p.dim() > 1)]
    return [part.detach().cpu() for part in found if part is not None]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_bits_of_other_engines(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    other = quantize(nn.Sequential(make()), recipe=RECIPES[recipe])
    model = copy.deepcopy(other).to(DEVICE)
    # tried above, where the interpreter takes seconds; engines are tried with minutes of work
    for engine in (TritonDigits, TritonInt8):
        monkeypatch.setattr(engine, "admitted_on", lambda self, device_type: True)
    called: list[str] = []
    real = TritonDigits.of_shifted
    monkeypatch.setattr(
        TritonDigits, "of_shifted", lambda *args: (called.append("x"), real(*args))[1]
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    want = ran(other, x)
    assert not called
    engines = choice.ENGINES["cuda"]
    monkeypatch.setattr(choice, "ENGINES", {**choice.ENGINES, DEVICE: engines})
    monkeypatch.setattr("qtrain.products.blocks.ENGINES", choice.ENGINES)
    got = ran(model, x.to(DEVICE))
    assert len(called) == 3 - ("int8" in recipe)
    exact = 3 - ("int8" in recipe)  # grad_weight sums floats there
    assert all(torch.equal(*pair) for pair in list(zip(got, want, strict=True))[:exact])


def test_a_batch_of_matrices_with_scales_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (3, 4, 40), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (3, 5, 40), generator=generator, dtype=torch.int8)
    product = Product(BatchedMatmul(), "forward")
    sums = (a.double() @ b.double().transpose(1, 2)).float()
    for engine, span in ((TritonDigits(), Span(-300, 300)), (TritonInt8(), EIGHT)):
        for shape in ((3, 1, 5), (3, 1, 1), (1, 1, 5), (1, 1, 1)):
            scale = torch.rand(shape, generator=generator)
            task = Task(product, 40, 1, span, EIGHT, sums=False)
            epilogue = Epilogue((scale.to(DEVICE),))
            within = epilogue.scale_of(product.operation, 15) is not None
            assert within == (shape in ((3, 1, 5), (1, 1, 1)))
            got = engine.product(task, a.to(DEVICE), b.to(DEVICE), a, epilogue=epilogue)
            assert torch.equal(got.cpu(), sums * scale)


def test_a_scale_that_fp32_does_not_hold() -> None:
    """Beside others, and alone."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (4, 40), generator=generator, dtype=torch.int8)
    w = torch.randint(-128, 128, (1, 5, 40), generator=generator, dtype=torch.int8)
    held = torch.rand(5, generator=generator)
    tiny = torch.full((), 2.0**-100)
    product = Product(Linear(), "forward")
    sums = (a.double() @ w[0].double().t()).float()
    for engine, span in ((TritonDigits(), Span(-300, 300)), (TritonInt8(), EIGHT)):
        for one, other in ((held, held), (held * 2.0**-30, tiny), (held[:1], tiny)):
            task = Task(product, 40, 1, span, EIGHT, sums=False)
            after = Epilogue((one.to(DEVICE), other.to(DEVICE)))
            got = engine.product(task, a.to(DEVICE), w.to(DEVICE), a, epilogue=after)
            scale = Epilogue((one, other)).scale
            assert scale is not None and torch.equal(got.cpu(), (sums.double() * scale).float())
