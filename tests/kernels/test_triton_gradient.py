"""Triton's grad_weight with a floating-point operand: float64's but for the sums' rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton_device import DEVICE, served

from qtrain import quantize
from qtrain.products import blocks
from qtrain.products.convolution import Convolution
from qtrain.products.engines import choice
from qtrain.products.engines.engine import _products
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.gpu.half import gradient, plan
from qtrain.products.engines.gpu.half.engine import TritonHalf
from qtrain.products.engines.task import ANY, Task
from qtrain.products.operations import BatchedMatmul, Linear, Operation
from qtrain.products.product import Product
from quantizers import QTensor

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
BF16, FP16 = torch.bfloat16, torch.float16

CASES: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (Linear(), (3, 5, 70), (1, 9, 70)),
    "long": (Linear(), (600, 9), (1, 5, 9)),
    "wide": (Linear(), (37, 136), (1, 144, 136)),
    "batches": (BatchedMatmul(), (3, 40, 65), (3, 9, 65)),
    "1d": (Convolution((1,), (1,), (1,), 1), (2, 33, 9), (1, 5, 33, 3)),
    "1d transposed": (Convolution((2,), (1,), (1,), 1, True, (1,)), (2, 6, 9), (1, 5, 6, 3)),
    "1x1": (Convolution((1, 1), (0, 0), (1, 1), 1), (2, 70, 4, 5), (1, 9, 70, 1, 1)),
    "1x1 strided": (Convolution((2, 2), (0, 0), (1, 1), 1), (2, 34, 7, 8), (1, 9, 34, 1, 1)),
    "1x1 cropped": (
        Convolution((1, 1), (0, 0), (2, 2), 1, True, (1, 1)), (2, 9, 4, 5), (1, 8, 9, 1, 1)
    ),
    "1x1 moved": (
        Convolution((1, 1), (1, 1), (3, 3), 1, True, (2, 2)), (2, 9, 4, 5), (1, 8, 9, 1, 1)
    ),
    "3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (3, 40, 5, 5), (1, 24, 40, 3, 3)),
    "few channels": (Convolution((1, 1), (2, 2), (1, 1), 1), (2, 3, 6, 7), (1, 24, 3, 5, 5)),
    "strided": (Convolution((2, 2), (1, 1), (1, 1), 1), (1, 17, 8, 7), (1, 16, 17, 3, 3)),
    "uneven": (Convolution((2, 1), (2, 0), (1, 2), 2), (1, 66, 9, 8), (2, 5, 33, 3, 2)),
    "groups": (Convolution((1, 1), (1, 1), (2, 2), 2), (1, 64, 6, 6), (2, 4, 32, 3, 3)),
    "depthwise": (Convolution((1, 1), (1, 1), (1, 1), 8), (2, 8, 6, 6), (8, 1, 1, 3, 3)),
    "transposed": (
        Convolution((2, 2), (1, 1), (1, 1), 2, True, (1, 0)), (2, 72, 5, 6), (2, 33, 36, 3, 3)
    ),
}  # fmt: skip


def drawn(shape: torch.Size, low: int, high: int, seed: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def on_grid(shape: torch.Size, half: torch.dtype, seed: int) -> Tensor:
    """fp32 numbers that `half` holds."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw).to(half).float()


def tensors(name: str) -> tuple[Product, Tensor, Tensor, Tensor]:
    return list(_products(*CASES[name]))[2]


def task(product: Product, a: Tensor, b: Tensor, half: torch.dtype) -> Task:
    size = product.terms(a.shape, b.shape)
    return Task(product, *size, ANY, ANY, "float", sums=False, significant=8, half=half)


def there(q: QTensor) -> QTensor:
    elements, zero_point = q.elements.to(DEVICE), q.zero_point
    return q._replace(
        elements=elements, zero_point=None if zero_point is None else zero_point.to(DEVICE)
    )


def run(
    product: Product, a: QTensor, b: QTensor, like: Tensor, half: torch.dtype,
    epilogue: Epilogue | None = None,
) -> Tensor:  # fmt: skip
    engine, asked = TritonHalf(half), task(product, a.elements, b.elements, half)
    assert engine.supports(asked)
    got = engine.of_quantized(asked, there(a), there(b), like.to(DEVICE), epilogue or Epilogue())
    assert got.dtype == torch.float32 and got.shape == like.shape
    return got.cpu()


@pytest.mark.parametrize("parts", [1, 20])
@pytest.mark.parametrize("name", CASES)
def test_sums_of_integers_are_exact(name: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every partial sum is held: codes, about a zero point, by floats of few bits."""
    monkeypatch.setattr(gradient, "_STEPS", 1)
    monkeypatch.setattr(gradient, "multiprocessors", lambda device: parts * parts - 1)
    product, a, b, like = tensors(name)
    zero, half = torch.tensor(131, dtype=torch.int32), FP16 if parts == 20 else BF16
    g, codes = drawn(a.shape, -20, 20, 1), drawn(b.shape, 0, 255, 2)
    last = torch.channels_last
    if parts > 1 and a.dim() == 4:
        g, codes = g.contiguous(memory_format=last), codes.contiguous(memory_format=last)
    want = product.run(g.double(), (codes - 131).double(), like)
    got = run(product, QTensor(g.float()), QTensor(codes.to(torch.uint8), None, zero), like, half)
    assert torch.equal(got.double(), want)
    signed = drawn(b.shape, -128, 127, 2).to(torch.int8)
    want = product.run(g.double(), signed.double(), like)
    assert torch.equal(run(product, QTensor(g.float()), QTensor(signed), like, half), want.float())
    shifted = (g + 131).to(torch.uint8)
    assert torch.equal(
        run(product, QTensor(shifted, None, zero), QTensor(signed.float()), like, half),
        want.float(),
    )


@pytest.mark.parametrize("half", [BF16, FP16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sums_are_near(name: str, half: torch.dtype) -> None:
    product, a, b, like = tensors(name)
    g, x = on_grid(a.shape, half, 1), on_grid(b.shape, half, 2)
    want = product.run(g.double(), x.double(), like)
    reach = product.run(g.double().abs(), x.double().abs(), like)
    terms = task(product, a, b, half).terms
    got = run(product, QTensor(g), QTensor(x), like, half)
    assert ((got - want).abs() <= terms * 2.0**-23 * reach).all()
    kept = run(product, QTensor(g.to(half)), QTensor(x), like, half)
    assert torch.equal(kept, got), "elements kept in 16 bits"


@pytest.mark.parametrize("name", ["linear", "3x3", "transposed"])
def test_scales(name: str) -> None:
    product, a, b, like = tensors(name)
    g, x = drawn(a.shape, -9, 9, 1).float(), drawn(b.shape, -9, 9, 2).to(torch.int8)
    sums = product.run(g.double(), x.double(), like).float()
    for scale in (torch.tensor(0.3), torch.tensor([3e-30], dtype=torch.float64)):
        after = Epilogue((scale.to(DEVICE),))
        want = (sums.double() * scale.double()).float()
        assert torch.equal(run(product, QTensor(g), QTensor(x), like, BF16, after), want)
    many = torch.rand((1, like.shape[1], *[1] * (like.dim() - 2)))
    after = Epilogue((many.to(DEVICE),))
    assert torch.equal(run(product, QTensor(g), QTensor(x), like, BF16, after), sums * many)


@pytest.mark.parametrize("name", ["3x3", "transposed"])
def test_the_gradient_lies_as_the_weight(name: str) -> None:
    product, a, b, like = tensors(name)
    g, x = on_grid(a.shape, BF16, 1), on_grid(b.shape, BF16, 2)
    raw = product.operation.raw(like).contiguous(memory_format=torch.channels_last)
    for own in (product.operation.raw(like).contiguous(), raw):
        canonical = product.operation.canonical(own)
        assert run(product, QTensor(g), QTensor(x), canonical, BF16).stride() == canonical.stride()


@pytest.mark.parametrize("name", ["linear", "strided"])
def test_what_is_not_finite_stays_so(name: str) -> None:
    product, a, b, like = tensors(name)
    for value in (float("inf"), -float("inf"), float("nan")):
        g, x = on_grid(a.shape, BF16, 1), on_grid(b.shape, BF16, 2)
        g.view(-1)[g.numel() // 2] = value
        want = product.run(g, x, like)
        got = run(product, QTensor(g), QTensor(x), like, BF16)
        assert not want.isfinite().all()
        assert torch.equal(got.isfinite(), want.isfinite())
        if name == "linear":
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got[got.isinf()], want[want.isinf()])


def test_zero_points_of_many_and_fp64() -> None:
    product, a, b, like = tensors("linear")
    g, x = drawn(a.shape, -9, 9, 1), drawn(b.shape, 0, 15, 2).to(torch.uint8)
    zero = drawn((*b.shape[:1], 1, 1), 0, 15, 3).int()
    q = QTensor(x, None, zero, None, (1, *b.shape[1:]))
    want = product.run(g.double(), (x.int() - zero).double(), like)
    assert torch.equal(run(product, QTensor(g.float()), q, like, BF16), want.float())
    wide = torch.rand(a.shape, dtype=torch.float64), torch.rand(b.shape, dtype=torch.float64)
    asked = task(product, a, b, BF16)
    got = TritonHalf(BF16).product(asked, *(x.to(DEVICE) for x in wide), like.to(DEVICE))
    assert torch.allclose(got.cpu(), product.run(*wide, like), rtol=1e-14, atol=0)


def test_places_beyond_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = (plan.Operand.of((3, 1, 1), (2**n, 1, 1), 1) for n in (30, 28))
    assert plan.is_wide(*far) and not plan.is_wide(*near)
    plan.planned.cache_clear()
    monkeypatch.setattr(plan, "is_wide", lambda *placed: True)
    for name in ("batches", "3x3", "few channels"):
        test_sums_of_integers_are_exact(name, 20, monkeypatch)
    plan.planned.cache_clear()


def test_rows_that_are_not_evenly_apart() -> None:
    for name in ("linear", "batches", "3x3"):
        product, a, b, like = tensors(name)
        g, x = drawn(a.shape, -9, 9, 1).float(), drawn(b.shape, -9, 9, 2).to(torch.int8)
        want = product.run(g.double(), x.double(), like)
        for axis in range(a.dim()):
            apart, other = (
                t.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(0, None, 2),)]
                for t in (g, x)
            )
            got = run(product, QTensor(apart), QTensor(other), like, BF16)
            assert torch.equal(got.double(), want)


def test_which_products_it_declines() -> None:
    product, a, b, _ = tensors("3x3")
    asked = task(product, a, b, BF16)
    engine = TritonHalf(BF16)
    assert engine.supports(asked)
    for other in (
        {"half": FP16}, {"half": None}, {"unit": BF16}, {"promise": "exact"},
        {"product": Product(product.operation, "forward")},
        {"multiplications": 63 * asked.terms},
    ):  # fmt: skip
        assert not engine.supports(Task(**{**vars(asked), **other})), other


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (8, 24)),
    "convolution": (lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 10, 3, stride=2), (2, 8, 5, 5)),
    "1d": (lambda: nn.Conv1d(16, 8, 3, padding=1), (2, 16, 9)),
}


TRAINED = [(name, recipe, False) for name in LAYERS for recipe in ("int8", "bf16", "fp16")]
TRAINED += [("convolution", "int8", True), ("linear", "fp16", True)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, by its compiler
@pytest.mark.parametrize(("name", "recipe", "compiled"), TRAINED)
def test_a_layer(name: str, recipe: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    other = quantize(nn.Sequential(make()), recipe=recipe)
    model = copy.deepcopy(other).to(DEVICE)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def gradients(model: nn.Module, device: str, run: Any) -> Tensor:
        output = run(x.to(device))
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        output.backward(direction.to(device))
        grad = model[0].weight.grad  # type: ignore[index, union-attr]
        return grad.cpu()  # type: ignore[union-attr, no-any-return]

    want = gradients(other, "cpu", other)
    # tried above, where the interpreter takes seconds; engines are tried with minutes of work
    monkeypatch.setattr(TritonHalf, "admitted_on", lambda self, device_type: True)
    launched: list[str] = []
    real = gradient.planned
    monkeypatch.setattr(gradient, "planned", lambda of: (launched.append("x"), real(of))[1])
    engines = (TritonHalf(FP16 if recipe == "fp16" else BF16), *choice.ENGINES["meta"])
    monkeypatch.setattr(blocks, "ENGINES", {**choice.ENGINES, DEVICE: engines})
    run: Any = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    got = gradients(model, DEVICE, run)
    assert launched == ["x"]
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
