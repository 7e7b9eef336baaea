"""Triton's sums of accumulators have the bits of `accumulate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, quantize
from qtrain.products.accumulated import sums
from qtrain.products.accumulated.gpu import sums as kernels
from qtrain.products.accumulated.gpu.choice import chosen
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    accumulators,
    bf16,
    blocks,
    ceil,
    e4m3,
    e5m2,
    floor,
    fp16,
    fp32,
    half_away,
    int8,
    root_key,
    round_to,
    stochastic,
    tf32,
    toward_zero,
)
from quantizers.devices.memory import eager
from quantizers.formats import Format

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
KEY = root_key(3)
E6M9, E8M9 = FloatFormat(6, 9), FloatFormat(8, 9)
FINITE = FloatFormat(4, 7, bias=10, specials="finite")
sequential, unit = accumulators.sequential, accumulators.get
#: accumulators, and operands whose products fp32 holds or not
CASES: list[tuple[Any, Format, Format]] = [
    (sequential(E6M9), e5m2, e4m3),
    (sequential(E6M9), fp16, bf16),
    (sequential(FINITE, chunk=4), e4m3, e4m3),
    (sequential(FloatFormat(4, 3, overflow="saturate")), e5m2, e4m3),
    (sequential(FloatFormat(4, 3, specials="fn", overflow="nan")), e5m2, int8),
    (sequential(FloatFormat(5, 2, bias=-20)), fp16, fp16),
    (sequential(fp16), fp16, e5m2),
    (sequential(E8M9, chunk=5), fp16, e4m3),
    (sequential(fp32), fp32, fp32),
    (sequential(fp32, product=bf16, chunk=100), tf32, tf32),
    (sequential(E6M9, rounding=half_away), e4m3, e4m3),
    (sequential(E6M9, rounding=half_away, product=fp16), bf16, bf16),
    (sequential(E6M9, rounding=toward_zero, chunk=5), e4m3, e5m2),
    (sequential(bf16, rounding=floor), e4m3, e5m2),
    (sequential(fp16, rounding=floor, product=E6M9), e4m3, e5m2),
    (sequential(fp16, rounding=ceil, chunk=3), e4m3, e4m3),
    (sequential(E6M9, rounding=stochastic(8)), e4m3, e5m2),
    (sequential(E6M9, rounding=stochastic(), product=fp16, chunk=6), fp16, e4m3),
    (sequential(FINITE, rounding=stochastic(3), product=E6M9), e4m3, e4m3),
    (sequential(fp16, compensated=True), e4m3, e4m3),
    (sequential(E6M9, compensated=True, rounding=ceil, chunk=5), e4m3, e4m3),
    (sequential(bf16, compensated=True), bf16, bf16),
    (sequential(E6M9, chunk=4, inside="exact"), e4m3, e4m3),
    (sequential(FINITE, chunk=7, inside="exact", rounding=stochastic(9)), int8, int8),
    (sequential(bf16, chunk=5, inside="exact", compensated=True), IntFormat(16), IntFormat(16)),
    (unit("V100", "fp16"), fp16, fp16),
    (unit("H100", "e4m3", promote=32), e4m3, e5m2),
    (unit("H100", "tf32", promote=8), tf32, tf32),
    (accumulators.aligned(terms=4, bits=11, kept=9), e5m2, e4m3),
    (accumulators.aligned(terms=3, bits=30, kept=20, promote=6), int8, e4m3),
    (accumulators.integer(9, overflow="saturate"), int8, int8),
    (accumulators.integer(17, overflow="saturate"), IntFormat(12), int8),
    (accumulators.integer(33, overflow="saturate"), IntFormat(16), IntFormat(16)),
]  # fmt: skip


def drawn(format: Format, *shape: int, seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * spread
    x *= torch.exp2(torch.randint(-6, 7, shape, generator=generator).float())
    x[torch.rand(*shape, generator=generator) < 0.1] = 0.0
    if isinstance(format, IntFormat):
        return (x * format.high).clamp(format.low, format.high).round()
    assert isinstance(format, FloatFormat)
    return round_to(x, format)


def check(a: Tensor, b: Tensor, accumulator: Any, *formats: Format | None) -> None:
    want = sums._spread(a, b, accumulator, (formats[0], formats[1]), KEY)
    there = a.to(DEVICE), b.to(DEVICE)
    got = kernels.by_kernels(*there, accumulator, (formats[0], formats[1]), KEY.to(DEVICE))
    assert got is not None and same(got, want)


@pytest.mark.parametrize("spread", [2.0**-12, 1.0, 2.0**9], ids="x {}".format)
@pytest.mark.parametrize(("accumulator", "one", "other"), CASES, ids=str)
def test_accumulators(accumulator: Any, one: Format, other: Format, spread: float) -> None:
    a = drawn(one, 1, 3, 13, seed=1, spread=spread)
    check(a, drawn(other, 1, 20, 13, seed=2, spread=1.0), accumulator, one, other)


def test_both_widths_are_tried() -> None:
    found = [chosen(accumulator, (a, b), 13) for accumulator, a, b in CASES]
    for kernel in ("sequential", "aligned", "saturated"):
        wide = [one.constants["WIDE"] for one in found if one is not None and one.name == kernel]
        assert {True, False} == set(wide)


@pytest.mark.parametrize("far", [False, True])
def test_batches_and_views(far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands as they lie, and those that several batches share; several programs."""
    monkeypatch.setattr(kernels, "is_wide", lambda *layout: far)
    a, b = (drawn(e4m3, *shape, seed=1, spread=1.0) for shape in ((4, 5, 9), (2, 40, 5)))
    for accumulator in (sequential(E6M9, rounding=stochastic(4)), unit("H100", "e4m3")):
        check(a.mT, b[:1], accumulator, e4m3, e4m3)
        check(a.mT[:1], b, accumulator, e4m3, e4m3)
        check(a.mT.unflatten(0, (2, 2)), b.unsqueeze(1), accumulator, e4m3, e4m3)
        check(a[0].T, b[0], accumulator, e4m3, e4m3)


@pytest.mark.parametrize(
    "accumulator",
    [sequential(fp16), sequential(bf16), sequential(FINITE, rounding=toward_zero, chunk=2),
     sequential(E6M9, product=e5m2, rounding=stochastic(2)), unit("A100", "bf16"),
     accumulators.aligned(terms=4, bits=11, kept=9), accumulators.aligned(terms=2, bits=1, kept=4)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("format", [e5m2, None], ids=str)
def test_what_is_not_finite(accumulator: Any, format: Format | None) -> None:
    """Infinities meet zeros, each other, and every power of two; sums overflow."""
    if accumulator == unit("A100", "bf16") and format is not None:
        format = bf16
    inf = float("inf")
    low, high = (-14.0, 16.0) if format == e5m2 else (-126.0, 128.0)
    powers = torch.exp2(torch.arange(low, high, 3.0))
    ends = torch.tensor([inf, -inf, float("nan"), 0.0, -0.0])
    a, b = torch.ones(4, 5), torch.ones(len(powers) + 5, 5)
    a[:2, 1], b[:, 1] = ends[:2], torch.cat([powers, ends])
    a[2, 3:], a[3] = -57344.0, 57344.0
    check(a, b, accumulator, format, format)


@pytest.mark.parametrize(
    ("accumulator", "terms"),
    [
        # beside a tie of the format, further than 24 bits reach: of an odd sum, of a rounded one
        (sequential(FloatFormat(8, 22)), ((1.0, 1.0), (129 * 2.0**-19, 2.0**-11))),
        (sequential(FloatFormat(8, 21)), ((1.0, 1.0), (129 * 2.0**-19, 2.0**-10))),
        # 1 + 2^-22 + four times 2^-24, of which 24 bits hold none
        (accumulators.aligned(terms=6, bits=24, kept=21),
         ((1.0, 1.0), (2.0**-11, 2.0**-11), *[(2.0**-12, 2.0**-12)] * 4)),
    ],
    ids=str,
)  # fmt: skip
def test_sums_that_fp32_would_round_otherwise(accumulator: Any, terms: Any) -> None:
    format = FloatFormat(5, 7)
    a, b = torch.tensor(terms).T
    assert torch.equal(round_to(a, format), a) and torch.equal(round_to(b, format), b)
    check(a[None], b[None], accumulator, format, format)


def test_an_aligned_sum_that_ended_at_a_negative_zero_goes_on_at_a_positive_one() -> None:
    a, b = torch.tensor([[-(2.0**-133), -0.0]]), torch.tensor([[2.0**-18, 1.0]])
    for terms in (1, 2):
        one = accumulators.aligned(terms=1, bits=25, kept=21)
        check(a[:, :terms], b[:, :terms], one, None, None)


def test_random_bits_are_those_of_the_keys_numbers() -> None:
    """Of another key, another sum."""
    a, b = (drawn(e4m3, 3, 6, seed=seed, spread=1.0).to(DEVICE) for seed in (1, 2))
    accumulator = sequential(FloatFormat(6, 3), rounding=stochastic(5), chunk=2)
    one, other, again = (
        kernels.by_kernels(a, b, accumulator, (e4m3, e4m3), root_key(n).to(DEVICE))
        for n in (1, 2, 1)
    )
    assert one is not None and other is not None and again is not None
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert kernels.by_kernels(a, b, accumulator, (e4m3, e4m3), None) is None


def test_what_no_kernel_serves_is_declined() -> None:
    a, b = torch.ones(2, 3, device=DEVICE), torch.ones(4, 3, device=DEVICE)
    far = sequential(E6M9, chunk=2, inside="exact")
    for accumulator, format in (
        (accumulators.exact(), e4m3),
        (accumulators.integer(9, overflow="wrap"), int8),
        (far, None),
        (far, e5m2),  # whose products lie further apart than fp64 is long
    ):
        assert kernels.by_kernels(a, b, accumulator, (format, format), None) is None
    assert kernels.by_kernels(a.double(), b, sequential(fp16), (e4m3, e4m3), None) is None
    assert kernels.by_kernels(a[:, :0], b[:, :0], sequential(fp16), (e4m3, e4m3), None) is None


E4M3, E5M2 = Quantizer(format=e4m3), Quantizer(format=e5m2)
MX = Quantizer(format=e4m3, granularity=blocks(4))


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6, 5))
        self.product = Matmul()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)  # type: ignore[no-any-return]


def by(x: Any, g: Any, *units: Any) -> Recipe:
    return Recipe(
        name="accumulated",
        forward=Forward(input=x, weight=x, accumulator=units[0]),
        grad_input=GradInput(grad_output=g, accumulator=units[1]),
        grad_weight=GradWeight(grad_output=g, accumulator=units[2]),
    )


CHUNKS, HOPPER = sequential(E6M9, chunk=3), unit("H100", "e4m3")
NOISY = sequential(FloatFormat(6, 5), rounding=stochastic(8))
INT8, NARROW = Quantizer(format=int8), accumulators.integer(15, overflow="saturate")
LAYERS: dict[str, tuple[Any, tuple[int, ...], Recipe]] = {
    "linear": (lambda: nn.Linear(7, 5), (2, 2, 7), by(E4M3, E5M2, CHUNKS, HOPPER, NOISY)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3, 2, 1), (2, 2, 3, 3), by(E4M3, E5M2, *[CHUNKS] * 3)),
    "groups": (lambda: nn.Conv1d(4, 6, 2, groups=2), (2, 4, 4), by(INT8, INT8, *[NARROW] * 3)),
    "transposed": (
        lambda: nn.ConvTranspose1d(4, 3, 2, stride=2), (1, 4, 3), by(E4M3, E5M2, *[NOISY] * 3)
    ),
    "matrices": (Square, (2, 3, 6), by(E4M3, E5M2, HOPPER, CHUNKS, CHUNKS)),
    "blocks": (lambda: nn.Linear(8, 5), (6, 8), by(MX, MX, HOPPER, CHUNKS, CHUNKS)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_cpus_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, gradients of the input and of the weight."""
    make, shape, recipe = LAYERS[name]
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

    def form(a: Tensor, b: Tensor, *more: Any) -> Tensor | None:
        found.append(kernels.by_kernels(a, b, *more))
        return found[-1]

    monkeypatch.setitem(sums._accumulated.forms, DEVICE, form)
    got = run(model.to(DEVICE), DEVICE)
    assert len(found) >= 3 and all(made is not None for made in found)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
