"""Every engine's bits, over a generated set of shapes, against sums in float64."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from bare_pytest import bare_pytest
from torch import Tensor, nn

from qtrain import GradWeight, ScaledDotProductAttention, quantize, recipes
from qtrain.products.blocks import multiply
from qtrain.products.convolution import Convolution
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.cut import CutInt8
from qtrain.products.engines.engine import Engine, admitted
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import Float32, RoundedSums, reference
from qtrain.products.engines.matrices import MatricesInt8
from qtrain.products.engines.onednn import OneDnnInt8
from qtrain.products.engines.task import Span, Task
from qtrain.products.engines.unfolded import UnfoldedInt8
from qtrain.products.operations import KINDS, BatchedMatmul, Kind, Linear, Operation
from qtrain.products.product import Product
from quantizers import IntFormat, Quantizer, int8, minmax, per_axis, per_tensor, steps

Case = tuple[Operation, tuple[int, ...], tuple[int, ...]]
#: of a and of b
SPANS = (
    (Span(0, 255), Span(-128, 127)),
    (Span(-128, 127), Span(-128, 127)),
    (Span(-32767, 32767), Span(-128, 127)),
    (Span(-2048, 2047), Span(0, 255)),
    (Span(0, 65535), Span(-32768, 32767)),
)


def convolutions() -> dict[str, Case]:
    """Named by what they are; drawn once, always the same."""
    draw = random.Random(0)
    found: dict[str, Case] = {}
    for transposed in (False, True):
        for space in (1, 2, 2, 2, 2, 3):
            for groups in (1, 1, 2, 8):
                kernel = [
                    draw.choice((1, 2, 3, 3, 5, 7)[: 7 - 2 * space + 3]) for _ in range(space)
                ]
                stride = [draw.choice((1, 1, 2, 3)) for _ in range(space)]
                dilation = [draw.choice((1, 1, 2, 3)) for _ in range(space)]
                reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
                padding = [draw.choice((0, 1, r // 2, r + 1)) for r in reach]
                extra = [draw.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
                # an input, or output, of at least one position
                size = [
                    max(draw.randrange(1, 10), r + 1 - 2 * p, 1 + (2 * p - r) // s + 1)
                    for r, p, s in zip(reach, padding, stride, strict=True)
                ]
                per_group = 1 if groups == 8 else draw.choice((1, 3, 8))
                batch = draw.choice((0, 1, 2, 3))
                operation = Convolution(
                    tuple(stride), tuple(padding), tuple(dilation), groups, transposed,
                    tuple(extra) if transposed else (),
                )  # fmt: skip
                weight = (groups, draw.choice((1, 2, 5)), per_group, *kernel)
                name = "transposed" if transposed else "conv"
                shown = [
                    "x".join(map(str, part)) for part in (size, kernel, stride, padding, dilation)
                ]
                found[f"{name} {batch}x{groups * per_group}x" + " ".join(shown) + f" g{groups}"] = (
                    operation, (batch, groups * per_group, *size), weight,
                )  # fmt: skip
    return found


DRAWN = convolutions()
CASES: dict[str, Case] = {
    "linear 1 row": (Linear(), (1, 70), (1, 9, 70)),
    "linear batched": (Linear(), (2, 3, 17), (1, 5, 17)),
    "linear long": (Linear(), (5, 4608), (1, 8, 4608)),
    "linear beyond int32": (Linear(), (140000, 2), (1, 3, 2)),
    "linear empty": (Linear(), (0, 16), (1, 8, 16)),
    "matmul": (BatchedMatmul(), (3, 5, 17), (3, 4, 17)),
    "matmul one row": (BatchedMatmul(), (2, 1, 70), (2, 1, 70)),
    "matmul one term": (BatchedMatmul(), (2, 9, 1), (2, 33, 1)),
    "matmul heads": (BatchedMatmul(), (2, 65, 64), (2, 96, 64)),
    "matmul long": (BatchedMatmul(), (2, 33, 4608), (2, 40, 4608)),
    "matmul no rows": (BatchedMatmul(), (3, 0, 17), (3, 4, 17)),
    "matmul no terms": (BatchedMatmul(), (3, 5, 0), (3, 4, 0)),
    "matmul empty": (BatchedMatmul(), (0, 5, 17), (0, 4, 17)),
    "conv 3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 32, 9, 8), (1, 16, 32, 3, 3)),
    "conv 3x3 stride 2": (Convolution((2, 2), (1, 1), (1, 1), 1), (2, 16, 8, 9), (1, 32, 16, 3, 3)),
    "conv 1x1 stride 2": (Convolution((2, 2), (0, 0), (1, 1), 1), (2, 16, 8, 9), (1, 32, 16, 1, 1)),
    "conv 7x7 stride 2": (Convolution((2, 2), (3, 3), (1, 1), 1), (2, 3, 15, 16), (1, 16, 3, 7, 7)),
    "conv long": (Convolution((1, 1), (1, 1), (1, 1), 1), (1, 512, 4, 4), (1, 4, 512, 3, 3)),
    **DRAWN,
}


def drawn(span: Span, shape: tuple[int, ...], worst: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if worst:
        return torch.full(shape, span.low if span.low + span.high < 0 else span.high)
    return torch.randint(span.low, span.high + 1, shape, generator=generator)


def narrow(span: Span) -> torch.dtype:
    """The smallest dtype that holds it, as elements have."""
    for dtype in (torch.uint8, torch.int8, torch.int16):
        if span.within(torch.iinfo(dtype).min, torch.iinfo(dtype).max):
            return dtype
    return torch.int32


class Cut(CutInt8):
    """For sums of any length, short ones too."""

    @staticmethod
    def terms(products: int) -> int:
        return 0


needs_int8 = pytest.mark.skipif(
    not admitted(OneDnnInt8(), "cpu"), reason="this processor has no exact int8 units (VNNI)"
)
#: whatever the size of a product
ALL: tuple[Engine, ...] = (
    OneDnnInt8(0), MatricesInt8(0, 0), UnfoldedInt8(0), Cut(MatricesInt8(0, 0)),
    Cut(UnfoldedInt8(0)), Float32(), reference, RoundedSums(),
)  # fmt: skip


@pytest.mark.parametrize("engine", ALL[:-1], ids=lambda engine: engine.name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_every_engine_has_the_bits_of_the_exact_sum(name: str, kind: Kind, engine: Engine) -> None:
    """With and without zero point, epilogue and bias, in both layouts."""
    if not admitted(engine, "cpu"):
        pytest.skip(f"{engine.name} is refused on this machine")
    operation, input_shape, weight_shape = CASES[name]
    x, w = torch.zeros(input_shape), torch.zeros(weight_shape)
    output = operation.product("forward", x, w, x)
    channels = output.shape[operation.channel_axis(output.dim())]
    shapes: dict[Kind, Any] = {
        "forward": (x, w, x), "grad_input": (output, w, x), "grad_weight": (output, x, w),
    }  # fmt: skip
    a_like, b_like, like = shapes[kind]
    product = Product(operation, kind)
    count, per_index = product.terms(a_like.shape, b_like.shape)
    torch.manual_seed(len(name))
    tried = 0
    options = [*itertools.product((False, True), SPANS, (None, 0, 77), (False, True))]
    if name in DRAWN:  # many shapes, each by a third of what the others all meet
        options = random.Random(f"{name} {kind}").sample(options, 20)
    for worst, (span, other), zero_point, fused in options:
        taken = Task(
            product, count, per_index, span, other,
            zero_point=zero_point is not None, sums=not fused,
        )  # fmt: skip
        if taken.zero_point and not engine.takes_zero_point:
            continue
        if not engine.supports(taken):
            continue
        tried += 1
        a = drawn(span, tuple(a_like.shape), worst, 1)
        b = drawn(other, tuple(b_like.shape), worst, 2)
        exact = operation.product(kind, a.double() - (zero_point or 0), b.double(), like)
        assert exact.numel() == 0 or exact.abs().max() <= taken.bound
        last = fused and a.dim() == 4 and zero_point is None
        layout = torch.channels_last if last else torch.contiguous_format
        shift = None if zero_point is None else torch.tensor(zero_point)
        codes = a.to(narrow(span) if fused else torch.int64).contiguous(memory_format=layout)
        for epilogue in epilogues(operation, kind, exact, channels) if fused else [None]:
            got = engine.product(
                taken, codes, b.to(narrow(other)), like, zero_point=shift, epilogue=epilogue
            )  # fmt: skip
            if epilogue is None:
                assert torch.equal(got.double(), exact)
            else:
                assert got.dtype == torch.float32
                wanted = epilogue(operation, exact.clone())
                torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert tried or "int8" in engine.name or name == "linear beyond int32"


def epilogues(
    operation: Operation, kind: Kind, exact: Tensor, channels: int
) -> list[Epilogue | None]:
    """None, one scale, one for each channel, one for each sample; with and without bias."""
    axis = operation.channel_axis(exact.dim()) if kind != "grad_weight" else 1
    per_channel = [1] * exact.dim()
    per_channel[axis] = exact.shape[axis]
    per_sample = [exact.shape[0], *[1] * (exact.dim() - 1)]
    found: list[Epilogue | None] = [Epilogue()]
    for shape in ([1] * exact.dim(), per_channel, per_sample):
        bias = torch.randn(channels)
        wants_bias = kind == "forward" and not isinstance(operation, BatchedMatmul)
        found.append(Epilogue((torch.rand(shape),), bias if wants_bias else None))
    size = exact.shape[axis]
    special = torch.tensor([0.0, torch.nan, torch.inf, 1e-42, 1e38]).repeat(size + 1)[:size]
    found.append(Epilogue((special.reshape(per_channel),)))
    return found


@needs_int8
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize(
    "engine", [OneDnnInt8(), UnfoldedInt8(), Cut(UnfoldedInt8())], ids=lambda engine: engine.name
)
def test_results_lie_in_memory_as_torchs_own(engine: Engine, transposed: bool) -> None:
    operation = Convolution((2, 2), (1, 1), (1, 1), 1, transposed)
    for layouts in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        x, w = (
            torch.ones(shape).contiguous(memory_format=layout)
            for shape, layout in zip([(2, 4, 7, 6), (4, 4, 3, 3)], layouts, strict=True)
        )
        b = operation.canonical(w)
        output = operation.native(x, b, None)
        for kind, a, like in (("forward", x, x), ("grad_input", output, x)):
            wanted = operation.product(kind, a, b, like)  # type: ignore[arg-type]
            product = Product(operation, kind)  # type: ignore[arg-type]
            span = Span(0, 1000 if isinstance(engine, Cut) else 1)
            task = Task(product, *product.terms(a.shape, b.shape), span, Span(0, 1), sums=False)
            codes = a.to(torch.int8).clamp(max=1), b.to(torch.int8)
            got = engine.product(task, *codes, like, epilogue=Epilogue())
            assert got.stride() == wanted.stride(), (layouts, kind)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.down(x).relu())
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
@pytest.mark.parametrize("bits", [None, 16], ids="grad_weight {} bits".format)
def test_a_compiled_step_has_the_same_integer_products(
    bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtrain.products.engines.choice.ENGINES", {"cpu": ALL})
    torch.manual_seed(0)
    recipe = recipes.int8()
    if bits is not None:
        own = Quantizer(format=IntFormat(bits))
        recipe = replace(recipe, grad_weight=GradWeight(grad_output=own))
    found = []
    for backend in (None, "aot_eager"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model: Any = quantize(Net(), recipe=recipe)
        run = torch.compile(model, fullgraph=True, backend=backend) if backend else model
        x = torch.randn(2, 4, 9, 8).requires_grad_()
        model(x)  # the first forward is watched
        output = run(x)
        output.square().sum().backward()
        weights = [p.grad for name, p in model.named_parameters() if bits and "bias" not in name]
        found.append([output, x.grad, *weights])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_int8
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shifted", ["", "a", "b", "ab"])
@pytest.mark.parametrize("size", [48, 96])
def test_a_batch_of_matrices_has_the_same_bits_on_int8_units(
    kind: Kind, shifted: str, size: int
) -> None:
    """Zero points of either operand, or of none, of the tensor or of every kept entry."""
    product = Product(BatchedMatmul(), kind)
    served: list[str] = []
    affine = IntFormat(8, signed=False, symmetric=False)
    for granularity in (per_tensor, per_axis(0), None):
        x, y = torch.randn(2, 3, size, 96, generator=torch.Generator().manual_seed(0))
        operands = []
        for operand, values in zip(("a", "b"), (x, y), strict=True):
            kept, _ = product.axes(operand, 3)  # type: ignore[arg-type]
            if kind == "grad_input" and operand == "b":
                values = values.transpose(1, 2)
            shape = per_axis(*kept) if granularity is None else granularity
            if operand in shifted:
                quantizer = Quantizer(format=affine, range=minmax, granularity=shape)
            else:
                quantizer = Quantizer(format=int8, granularity=shape)
            operands.append(quantizer(values + 0.5))
        a, b = operands
        wanted = multiply(product, a, b, x, (reference,))
        found = multiply(product, a, b, x, note=lambda _, name: served.append(name))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert ("matrices_int8" in served) == (size == 96)


@needs_int8
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_compiled_attention_has_the_same_integer_products() -> None:
    found = []
    for backend in (None, "aot_eager"):
        torch._dynamo.reset()
        model: Any = quantize(ScaledDotProductAttention())
        run = torch.compile(model, fullgraph=True, backend=backend) if backend else model
        q, k, v = torch.randn(3, 2, 2, 96, 64, generator=torch.Generator().manual_seed(0))
        q.requires_grad_()
        model(q, k, v)  # the first forward is watched
        output = run(q, k, v, is_causal=True)
        output.square().sum().backward()
        found.append([output, q.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bits_are_the_same_where_the_processor_lacks_int8_units() -> None:
    """The integer engines are refused there, the others exact."""
    run = bare_pytest(
        "-n", "0", __file__, "-k", "every_engine and (linear or matmul or stride or g2)",
        environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    eight = "onednn_int8", "matrices_int8", "unfolded_int8"
    for engine in (*eight, "matrices_int8_cut", "unfolded_int8_cut"):
        assert f"{engine} is refused on this machine" in run.stdout


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_the_engines_of_cuda_compile_to_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: its engines, cuDNN to be kept out, and no operation of the CPU's own."""
    monkeypatch.setattr("qtrain.products.blocks.ENGINES", {"cpu": ENGINES["cuda"]})
    monkeypatch.setattr("qtrain.products.engines.plain_convolution.has_cudnn", lambda device: True)
    monkeypatch.setattr(steps.quantize, "graphs", {})
    found, kept_out = [], []
    flags = torch.backends.cudnn.flags
    monkeypatch.setattr(
        "torch.backends.cudnn.flags",
        lambda enabled, *rest, **options: (
            None if enabled else kept_out.append(torch.compiler.is_compiling()),
            flags(enabled, *rest, **options),
        )[1],
    )
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model: Any = quantize(Net(), bits=8)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        x = torch.randn(2, 4, 9, 8).requires_grad_()
        model(x)  # the first forward is watched
        kept_out.clear()
        output = run(x)
        output.square().sum().backward()
        assert kept_out
        found.append([output, x.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
