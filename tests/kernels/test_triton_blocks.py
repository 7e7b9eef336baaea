"""Triton's sums in blocks have the bits of the eager ones, whose sums of a block are float64's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from qtrain import quantize
from qtrain.products.blockwise import sums
from qtrain.products.blockwise.gpu import sums as kernels
from qtrain.products.blockwise.rows import Rows, Windows, rows_of
from quantizers import FloatFormat, IntFormat, Quantizer, blocks, e2m1, e4m3, e5m2, fp16
from quantizers.devices.memory import eager
from quantizers.formats import Format

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
THERE = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")


@pytest.mark.parametrize("case", kernels.TRIED, ids=str)
def test_sums_are_exact(case: tuple[int, int, int]) -> None:
    assert kernels.is_exact(THERE, *case)


@pytest.fixture(autouse=True)
def admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried above, case by case: all together take the interpreter ten seconds."""
    monkeypatch.setattr(kernels, "admitted", lambda device: True)


def operand(format: Format, shape: tuple[int, ...], step: int, seed: int) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(3).exp()
    return rows_of(Quantizer(format=format, granularity=blocks(step))(x), min(step, shape[-1]))


def moved(q: Rows) -> Rows:
    there = (None if part is None else part.to(DEVICE) for part in (q.elements, q.scale))
    return Rows(*there, *q[2:])


def check(a: Rows, b: Rows) -> None:
    one, other = moved(a), moved(b)
    got = kernels.block_sums(one.elements, one, other)
    assert got is not None and same(got, sums._by_blocks(a.elements, a, b))


#: one digit, two, and integers
FORMATS: tuple[Format, ...] = (
    e2m1, e4m3, FloatFormat(3, 2, specials="finite", zero=False), IntFormat(8), IntFormat(16)
)  # fmt: skip


@pytest.mark.parametrize("other", FORMATS, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_formats(format: Format, other: Format) -> None:
    for rows, columns, terms, step in ((5, 37, 70, 32), (70, 3, 19, 8), (3, 4, 100, 48)):
        check(
            operand(format, (1, rows, terms), step, 1), operand(other, (1, columns, terms), step, 2)
        )


@pytest.mark.parametrize("batches", [((3,), (3,)), ((2, 1), (2, 3)), ((1,), (4,))], ids=str)
def test_batches_that_share_an_operand(batches: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (operand(e4m3, (*batch, n, 40), 16, n) for batch, n in zip(batches, (5, 7), strict=True))
    check(a, b)
    check(b, a)


def test_views_and_operands_without_a_scale() -> None:
    a, b = operand(e4m3, (1, 6, 40), 16, 1), operand(e2m1, (1, 40, 7), 16, 2)
    turned = Rows(b.elements.mT, None, 16, b.unit, b.largest)
    check(a, turned)
    check(turned, a)
    one = torch.tensor([[[0.3]]]).expand(1, 7, 3)
    check(turned._replace(scale=one), a)


def test_scales_whose_product_fp32_does_not_hold() -> None:
    a, b = operand(e4m3, (1, 6, 32), 16, 1), operand(e4m3, (1, 5, 32), 16, 2)
    assert a.scale is not None and b.scale is not None
    for left, right in ((1e-30, 1e-12), (1e25, 1e18), (1e-38, 1e-6)):
        check(a._replace(scale=a.scale * left), b._replace(scale=b.scale * right))
    for number in (0.0, float("inf"), float("nan"), 2.0**-149):
        odd = a.scale.clone()
        odd[0, 2, 1] = number
        check(a._replace(scale=odd), b)
        check(b, a._replace(scale=odd))


IEEE = FloatFormat(4, 3)


@pytest.mark.parametrize("format", [e4m3, e2m1, IEEE], ids=str)
def test_elements_that_are_not_finite(format: Format) -> None:
    """An infinite element meets zeros, numbers of a second digit alone, and other infinities."""
    inf, nan = float("inf"), float("nan")
    a, b = operand(format, (1, 6, 64), 16, 1), operand(IEEE, (1, 5, 64), 16, 2)
    a.elements[0, 3, 20], a.elements[0, 4, 5], a.elements[0, 5, 60] = nan, inf, -inf
    a.elements[0, 5, 61] = inf
    b.elements[0, :4, 5] = torch.tensor([0.0, 2.0**-9, -(2.0**-9), inf])
    b.elements[0, 2, 61] = -1.0
    check(a, b)
    check(b, a)


def test_what_no_kernel_serves_is_declined() -> None:
    good = moved(operand(e4m3, (1, 4, 32), 32, 1))
    for format in (e5m2, fp16):
        other = moved(operand(format, (1, 4, 32), 32, 1))
        assert kernels.block_sums(good.elements, good, other) is None
    wide = good._replace(elements=good.elements.double())
    assert kernels.block_sums(good.elements, good, wide) is None
    none = good._replace(elements=good.elements[:, :0], scale=None)
    assert kernels.block_sums(none.elements, none, good) is None


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(36, 5, (3, 2), stride=2, padding=1), (2, 36, 3, 2)),
    "linear": (lambda: nn.Linear(72, 40), (3, 5, 72)),
    "groups": (lambda: nn.Conv2d(8, 12, 3, groups=2, padding=1), (2, 8, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 3, stride=2), (2, 6, 3, 4)),
    "1d": (lambda: nn.Conv1d(36, 8, 3, padding=1), (2, 36, 9)),
}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*zip(LAYERS, ("mxfp8", "nvfp4", "mxint8", "hbfp4", "jetfire"), strict=True),
     ("transposed", "mxfp8")],
)  # fmt: skip
def test_a_layer_has_the_cpus_bits(name: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, gradients of the input and of the weight."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = quantize(nn.Sequential(make()), recipe=recipe)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run(model: nn.Module, device: str) -> list[Tensor]:
        leaf = x.to(device, copy=True).requires_grad_()
        output = model(leaf)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        output.backward(direction.to(device))
        weight = next(iter(model.parameters()))
        assert leaf.grad is not None and weight.grad is not None
        return [t.detach().cpu() for t in (output, leaf.grad, weight.grad)]

    with eager():
        want = run(copy.deepcopy(model), "cpu")
    found: list[Tensor | None] = []

    def form(x: Tensor, a: Rows, b: Rows) -> Tensor | None:
        found.append(kernels.block_sums(x, a, b))
        return found[-1]

    monkeypatch.setitem(sums._summed.forms, DEVICE, form)
    got = run(model.to(DEVICE), DEVICE)
    assert len(found) == 3 and all(made is not None for made in found)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_table_is_copied_to_a_device_once() -> None:
    windows = Windows(torch.tensor([[0, -1], [1, 0]]).numpy(), 2)
    x = torch.tensor([[[1.0], [2.0]]], device=DEVICE)
    assert windows.on(x) is windows.on(x) and windows.on(x).device == x.device
    assert windows.of(x).tolist() == [[[1.0, 0.0], [2.0, 1.0]]]
