"""What runs on a CPU runs on a CUDA device: integer products to the bit, the rest closely."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.gpu import checks
from qtrain import Matmul, ScaledDotProductAttention, quantize, summary
from qtrain.products.accumulated.gpu.sums import by_kernels
from qtrain.products.accumulated.sums import accumulated
from quantizers import (
    FloatFormat,
    IntFormat,
    accumulators,
    bf16,
    e4m3,
    e5m2,
    fp16,
    fp32,
    int8,
    root_key,
    round_to,
    stochastic,
    toward_zero,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = ScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, is_causal=True)  # type: ignore[no-any-return]


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product = Matmul()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x.transpose(-2, -1))  # type: ignore[no-any-return]


class Functions(nn.Module):
    """Products by torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 24) / 5)
        self.kernel = nn.Parameter(torch.randn(24, 24, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        y = y + F.conv1d(x.transpose(1, 2), self.kernel, padding=1).transpose(1, 2)
        y = F.scaled_dot_product_attention(y, x, x, is_causal=True)
        return torch.einsum("bij,bkj->bik", y, x) @ x


class Recurrent(nn.Module):
    def __init__(self, make: Any, **settings: Any) -> None:
        super().__init__()
        self.layer = make(24, 12, batch_first=True, bidirectional=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(24, 16), (8, 24)),
    "Linear, 3 axes": (lambda: nn.Linear(264, 64), (4, 33, 264)),
    "Conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (4, 6, 17)),
    "Conv2d": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (8, 16, 17, 17)),
    "Conv2d, wide": (lambda: nn.Conv2d(64, 64, 3, padding=1), (8, 64, 14, 14)),
    "Conv2d, groups": (lambda: nn.Conv2d(8, 16, 3, groups=4), (4, 8, 9, 9)),
    "Conv2d, depthwise": (lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32), (4, 32, 12, 12)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (4, 8, 7, 7)),
    "Conv3d": (lambda: nn.Conv3d(3, 6, 3), (2, 3, 6, 6, 6)),
    "Matmul": (Square, (2, 12, 24)),
    "attention": (Attention, (2, 4, 12, 24)),
    "MultiheadAttention": (Multihead, (2, 12, 24)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True),
        (2, 12, 24),
    ),
    "functions": (Functions, (2, 12, 24)),
    "LSTM": (lambda: Recurrent(nn.LSTM, num_layers=2), (2, 12, 24)),
    "GRU": (lambda: Recurrent(nn.GRU), (2, 12, 24)),
}
SINGLE = [name for name, (make, _) in LAYERS.items() if name.startswith(("Linear", "Conv"))]


def step(model: nn.Module, x: Tensor, device: str) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters; on the CPU."""
    model, leaf = copy.deepcopy(model).to(device), x.detach().to(device, copy=True).requires_grad_()
    output = model(leaf)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(direction.to(device))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.detach().cpu() for t in (output, leaf.grad, *grads)]


def both(name: str, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = quantize(nn.Sequential(make()), **settings)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return step(model, x, "cpu"), step(model, x, "cuda")


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_integer_products_have_the_cpus_bits(name: str, bits: int) -> None:
    cpu, cuda = both(name, bits=bits)
    for a, b, what in zip(cpu[:2], cuda[:2], ("output", "grad_input"), strict=True):
        assert torch.equal(a, b), f"{what}: {(a != b).sum()} of {a.numel()}"
    for a, b in zip(cpu[2:], cuda[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("recipe", ["int8", "banner2018", "bf16", "fp16", "fp8", "mxfp8"])
def test_every_layer_trains_as_on_the_cpu(name: str, recipe: str) -> None:
    cpu, cuda = both(name, recipe=recipe)
    for a, b in zip(cpu, cuda, strict=True):
        assert b.isfinite().all()
        # a last bit of a norm or a softmax may move a code
        error = (a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-30)
        assert error < 0.05, error


@pytest.mark.parametrize(
    ("recipe", "engine"),
    [("int8", "triton_bf16"), ("bf16", "triton_bf16"), ("fp16", "triton_fp16")],
)
def test_gradients_of_weights_are_on_16_bit_tensor_cores(recipe: str, engine: str) -> None:
    pytest.importorskip("triton")
    for name in SINGLE:
        make, shape = LAYERS[name]
        found = summary(
            quantize(nn.Sequential(make()), recipe=recipe).cuda(), torch.rand(shape).cuda()
        )
        few = name in (
            "Conv1d", "Conv2d, groups", "Conv2d, depthwise", "ConvTranspose2d", "Conv3d"
        )  # fmt: skip
        served = (found.engines or {})["0"]["grad_weight"]
        assert served == engine or few, (name, served)


class RowNorm(nn.Module):
    """Written by hand, as libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2", "range"])
def test_a_network_with_converted_norms_trains_as_on_the_cpu(norm: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8),
        nn.InstanceNorm2d(8, affine=True), RowNorm(), nn.LayerNorm(6), nn.GroupNorm(2, 8),
    )  # fmt: skip
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    model = quantize(net, norm=norm)
    for a, b in zip(step(model, x, "cpu"), step(model, x, "cuda"), strict=True):
        error = (a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-2)
        assert error < 0.05, error


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of TensorFloat32 cores, by the compiler
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "range"}, {"recipe": "banner2018"}, {"recipe": "ibm-fp8"}],
    ids=str,
)
def test_a_compiled_step_is_one_graph(settings: dict[str, Any]) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    model = quantize(net, **settings).cuda()
    eager = copy.deepcopy(model)
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(2)).cuda()
    torch.compile(model, fullgraph=True)(x).sum().backward()
    eager(x).sum().backward()
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() <= 0.05 * b.grad.norm() + 1e-2


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("name", checks.layers())
def test_a_layer_has_the_cpus_bits(name: str, bits: int, channels_last: bool) -> None:
    assert checks.check_layer(name, bits, channels_last)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("recipe", [*checks.SUMS, *checks.ROTATED])
@pytest.mark.parametrize("name", checks.layers())
def test_a_layers_sums_have_the_cpus_bits(name: str, recipe: str, channels_last: bool) -> None:
    assert checks.check_sums(name, recipe, channels_last)


E6M9, E4M7 = FloatFormat(6, 9), FloatFormat(4, 7, bias=10, specials="finite")
sequential, unit = accumulators.sequential, accumulators.get
SUMS = [
    (sequential(E6M9), e5m2), (sequential(E6M9, chunk=64), bf16), (sequential(fp16), fp16),
    (sequential(E4M7, product=E4M7, rounding=toward_zero, chunk=16), fp32),
    (sequential(E6M9, rounding=stochastic(8)), e4m3),
    (sequential(E6M9, rounding=stochastic(), product=bf16, chunk=50), bf16),
    (sequential(E6M9, compensated=True), e4m3), (sequential(bf16, compensated=True), bf16),
    (sequential(E6M9, chunk=64, inside="exact"), e4m3), (unit("H100", "e4m3", promote=128), e4m3),
    (unit("H100", "fp16"), fp16), (unit("A100", "bf16", promote=64), bf16),
    (accumulators.integer(16, overflow="saturate"), int8),
    (accumulators.integer(40, overflow="saturate"), IntFormat(16)),
]  # fmt: skip


@pytest.mark.parametrize(("accumulator", "format"), SUMS, ids=str)
def test_long_sums_by_accumulators_have_the_cpus_bits(accumulator: Any, format: Any) -> None:
    """Of many programs, by the kernels, and replayed as a CUDA graph."""
    pytest.importorskip("triton")
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, 700, generator=draw) for n in (150, 333))
    a, b = ((x * 100).round() if isinstance(format, IntFormat) else round_to(x, format)
            for x in (a, b))  # fmt: skip
    formats, key = (format, format), root_key(1)
    want = accumulated(a, b[:1], accumulator, formats, key)
    there = a.cuda(), b[:1].cuda(), accumulator, formats, key.cuda()
    got = by_kernels(*there)
    assert got is not None and checks.same(got, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = by_kernels(*there)
    graph.replay()
    assert checks.same(again, want)


@pytest.mark.parametrize("name", ["Matmul", "attention"])
def test_products_of_matrices_by_accumulators_have_the_cpus_bits(name: str) -> None:
    cpu, cuda = both(name, recipe="ibm-fp8")
    assert torch.equal(cpu[0], cuda[0]) or name == "attention"  # a softmax may differ
    for a, b in zip(cpu, cuda, strict=True):
        assert (a - b).norm() <= 0.05 * a.norm()


@pytest.mark.parametrize("name", checks.learned())
@pytest.mark.parametrize("data", ["4 axes", "channels last", "transposed", "bf16", "infinity"])
def test_quantizers_that_learn_have_the_cpus_bits(name: str, data: str) -> None:
    assert checks.check_learned(checks.learned()[name], checks.inputs()[data])


def test_a_layer_that_learns_its_scales_trains_as_on_the_cpu() -> None:
    (y, dx, grads), (y2, dx2, grads2) = checks.on_both("Conv2d", True, recipe="lsq")
    assert torch.equal(y, y2) and len(grads) == len(grads2) == 4
    assert (dx - dx2).norm() <= 1e-5 * dx.norm()
    assert all((a - b).norm() <= 1e-4 * a.norm() for a, b in zip(grads, grads2, strict=True))


@pytest.mark.parametrize("first", range(14))
def test_quantizers_have_the_cpus_bits(first: int) -> None:
    wrong = [
        name
        for n, (name, x, by) in enumerate(itertools.islice(checks.quantizers_of(), first, 280, 14))
        if not checks.check_quantizer(x, by, n)
    ]
    assert not wrong
