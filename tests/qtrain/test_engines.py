"""Exact sums: what an engine claims, and that it holds up to the last integer it claims."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import GradInput, GradWeight, quantize, recipes
from qtrain.products.blocks import multiply
from qtrain.products.convolution import Convolution
from qtrain.products.engines.choice import ENGINES, choose
from qtrain.products.engines.cut import CutInt8
from qtrain.products.engines.engine import Engine, admitted
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import Float32, Float64, RoundedSums, reference
from qtrain.products.engines.matrices import MatricesInt8
from qtrain.products.engines.onednn import OneDnnInt8
from qtrain.products.engines.task import ANY, Span, Task, holds
from qtrain.products.engines.unfolded import UnfoldedInt8
from qtrain.products.operations import KINDS, BatchedMatmul, Kind, Linear, Operation
from qtrain.products.product import Product
from quantizers import IntFormat, QTensor, Quantizer

FLOATS: tuple[Engine, ...] = (Float32(), reference)
needs_int8 = pytest.mark.skipif(
    not admitted(OneDnnInt8(), "cpu"), reason="this processor has no exact int8 units (VNNI)"
)


def integers(bound: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-bound, bound + 1, shape, generator=generator)


@pytest.mark.parametrize(
    ("bound", "dtype"),
    [(2**24, torch.float32), (2**24 + 1, torch.int32), (2**31 - 1, torch.int32),
     (2**31, torch.float64), (2**52, torch.float64)],
)  # fmt: skip
def test_the_dtype_of_a_sum_holds_its_bound(bound: int, dtype: torch.dtype) -> None:
    assert holds(bound) == dtype
    assert int(torch.tensor(bound).to(dtype)) == bound


CONVOLUTION = Product(Convolution((1, 1), (1, 1), (1, 1), 1), "forward")
LINEAR = Product(Linear(), "forward")
GRAD_WEIGHT = Product(Linear(), "grad_weight")


def work(
    count: int, per_index: int, a: int, b: int, product: Product = LINEAR, **how: bool
) -> Task:
    return Task(product, count, per_index, Span(-a, a), Span(-b, b), **how)  # type: ignore[arg-type]


def chosen(work: Task, engines: tuple[Engine, ...] = ENGINES["cpu"]) -> str:
    return choose([work], "cpu", engines)[0].name


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (work(1, 1, 255, 127), "float32"),
        (work(1040, 1, 255, 127), "float32"),
        (work(8000, 1, 255, 127), "float32"),
        (work(10**6, 1, 255, 127), "float64"),  # too many parts
        (work(4, 1, 257, 1), "float64"),  # beyond what bf16 and TF32 units hold
        (work(4, 10**5, 255, 127), "float64"),  # one index alone passes 2^24
        (work(0, 0, 255, 127), "float32"),
    ],
    ids=str,
)
def test_engines_are_chosen_from_bounds(work: Task, name: str) -> None:
    assert chosen(work, engines=FLOATS) == name


@needs_int8
@pytest.mark.parametrize(
    ("a", "b", "how", "name"),
    [
        (Span(0, 255), Span(-127, 127), {}, "int8"),
        (Span(0, 255), Span(-127, 127), {"zero_point": True}, "int8"),
        (Span(-128, 127), Span(-128, 127), {}, "int8"),
        (Span(-128, 128), Span(-128, 127), {}, "cut"),
        (Span(0, 127), Span(0, 255), {}, "cut"),
        (Span(-32767, 32767), Span(0, 65535), {}, "cut"),
        (Span(-32768, 32768), Span(-128, 127), {}, "float64"),
    ],
    ids=str,
)
def test_integers_take_the_integer_units(a: Span, b: Span, how: Any, name: str) -> None:
    for one, own, cut in (
        (LINEAR, "matrices_int8", "matrices_int8_cut"),
        (CONVOLUTION, "onednn_int8", "unfolded_int8_cut"),
    ):
        wanted = Task(one, 4608, 1, a, b, sums=False, multiplications=2**24, **how)
        assert chosen(wanted) == {"int8": own, "cut": cut}.get(name, name)
        few = replace(wanted, multiplications=2**10)  # a call would take longer than they do
        assert chosen(few) == ("float32" if max(a.magnitude, b.magnitude) < 257 else "float64")


@needs_int8
@pytest.mark.parametrize(
    ("terms", "a", "name"),
    [
        (63, 2047, "float64"),
        (64, 2047, "matrices_int8_cut"),
        (15, 129, "float32"),
        (66000, 127, "matrices_int8"),
        (131072, 127, "unfolded_int8"),
        (200000, 127, "unfolded_int8_cut"),
    ],
)
def test_bytes_are_for_sums_that_are_long_enough(terms: int, a: int, name: str) -> None:
    assert chosen(work(terms, 1, a, 127, GRAD_WEIGHT, sums=False)) == name


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_int8_matrices_are_for_processors_on_which_torch_has_units(
    capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for unit in (MatricesInt8(), UnfoldedInt8(), CutInt8(UnfoldedInt8())):
        assert unit.has_units("cpu") == (capability == "AVX512")
        engine = _Untried(unit)
        assert admitted(engine, "cpu") == (capability == "AVX512")
    assert UnfoldedInt8().has_units("cuda") and not MatricesInt8().has_units("cuda")


class _Untried(CutInt8):
    """A unit that passes for itself, and serves nothing: what is not tried is not wrong."""

    def supports(self, task: Task) -> bool:
        return False


def test_no_part_of_a_sum_of_bytes_passes_int32() -> None:
    unit = CutInt8(UnfoldedInt8())
    assert unit.supports(work(2**22, 1, 32767, 127, GRAD_WEIGHT))
    assert unit.supports(work(1, 131071, 32767, 127, GRAD_WEIGHT))
    assert not unit.supports(work(2, 140000, 32767, 127, GRAD_WEIGHT))
    assert not unit.supports(work(2**23, 1, 32767, 32767, GRAD_WEIGHT))


@needs_int8
def test_integers_that_fp32_cannot_return_do_not_take_units_that_round_them() -> None:
    spans = Span(0, 255), Span(-127, 127)
    assert OneDnnInt8().supports(Task(CONVOLUTION, 518, 1, *spans))
    assert not OneDnnInt8().supports(Task(CONVOLUTION, 519, 1, *spans))
    assert not OneDnnInt8().supports(Task(CONVOLUTION, 2**17, 1, *spans, sums=False))


def test_a_zero_point_that_is_taken_off_in_fp32_needs_sums_that_fp32_holds() -> None:
    """AMX units: 65 channels of 3x3, codes of 255 and 127, were off by one before."""
    by_float = OneDnnInt8(0, shifted=2**24)
    codes, weight = Span(0, 255), Span(-127, 127)
    for count, fits in ((57, True), (58, False)):
        shifted = Task(CONVOLUTION, count, 9, codes, weight, zero_point=True, sums=False)
        assert by_float.supports(shifted) == fits
        backward = CONVOLUTION._replace(kind="grad_input")
        signed = Task(backward, count, 9, Span(-127, 127), weight, sums=False)
        assert by_float.supports(signed) == fits
        assert OneDnnInt8(0).supports(shifted)
    plain = Task(CONVOLUTION, 400, 9, codes, weight, sums=False)
    assert by_float.supports(plain)
    assert by_float.name != OneDnnInt8().name


def test_a_sum_that_no_engine_holds_is_refused() -> None:
    long = Task(LINEAR, 2**23, 1, Span(0, 65534), Span(-32767, 32767))
    with pytest.raises(ValueError, match=r"65534 and 32767.*exact below 2\^53; use fewer bits"):
        chosen(long)
    with pytest.raises(ValueError, match=r"\(float32\) are exact"):
        chosen(work(4, 1, 1000, 1000), engines=(Float32(),))


def shapes(operation: Operation, count: int) -> dict[Kind, tuple[tuple[int, ...], ...]]:
    """(a, b, like) of each product with `count` indices along its split axis."""
    n = count
    if isinstance(operation, Linear):
        return {
            "forward": ((3, n), (1, 2, n), (3, n)),
            "grad_input": ((3, n), (1, n, 2), (3, 2)),
            "grad_weight": ((n, 3), (n, 2), (1, 3, 2)),
        }
    if isinstance(operation, BatchedMatmul):
        return {
            "forward": ((2, 3, n), (2, 4, n), (2, 3, n)),
            "grad_input": ((2, 3, n), (2, n, 4), (2, 3, 4)),
            "grad_weight": ((2, n, 3), (2, n, 4), (2, 3, 4)),
        }
    g = operation.groups  # type: ignore[attr-defined]
    return {
        "forward": ((1, n * g, 4, 4), (g, 2, n, 2, 2), (1, n * g, 4, 4)),
        "grad_input": ((1, n * g, 3, 3), (g, n, 2, 2, 2), (1, 2 * g, 4, 4)),
        "grad_weight": ((n, 2 * g, 3, 3), (n, 3 * g, 4, 4), (g, 2, 3, 2, 2)),
    }


OPERATIONS: dict[str, Operation] = {
    "linear": Linear(),
    "matmul": BatchedMatmul(),
    "convolution": Convolution((1, 1), (0, 0), (1, 1), 1),
    "grouped convolution": Convolution((1, 1), (0, 0), (1, 1), 2),
}


@pytest.mark.parametrize("extreme", [True, False], ids=["worst case", "random"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_sum_in_parts_is_the_whole_sum(name: str, kind: Kind, extreme: bool) -> None:
    """K beyond what fp32 holds at once, ragged: the parts add as integers."""
    operation, engine = OPERATIONS[name], Float32()
    a_shape, b_shape, like = shapes(operation, 701)[kind]
    a, b = integers(255, *a_shape, seed=1), integers(128, *b_shape, seed=2)
    if extreme:
        a, b = torch.full(a_shape, 255), torch.full(b_shape, 127)
    product = Product(operation, kind)
    count, per_index = product.terms(a.shape, b.shape)
    sums = work(count, per_index, 255, 128, product)
    assert sums.bound > 2**24 and engine.supports(sums)
    whole = reference.product(sums, a, b, torch.empty(like))
    parts = engine.product(sums, a, b, torch.empty(like))
    assert torch.equal(parts.double(), whole)
    if isinstance(operation, Linear):  # the oracle itself, in int64
        left, right = (a, b[0].T) if kind == "forward" else (a, b[0])
        exact = (a.T @ b)[None] if kind == "grad_weight" else left @ right
        assert torch.equal(whole.long(), exact)


def test_every_shape_of_a_whole_layer_is_within_the_claimed_count() -> None:
    """`terms` bounds the number of products in any sum: counted with operands of ones."""
    options = itertools.product((1, 2), (0, 2), (1, 2), (1, 2), (False, True))
    for stride, padding, dilation, groups, transposed in options:
        operation = Convolution(
            (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups, transposed, (0, 0)
        )
        x = torch.ones(2, 4, 7, 7)
        w = torch.ones(groups, 2, 4 // groups, 3, 3)
        out = operation.product("forward", x, w, x)
        g = torch.ones_like(out)
        operands: dict[Kind, tuple[Tensor, Tensor, Tensor]] = {
            "forward": (x, w, x), "grad_input": (g, w, x), "grad_weight": (g, x, w),
        }  # fmt: skip
        for kind, (a, b, like) in operands.items():
            count, per_index = Product(operation, kind).terms(a.shape, b.shape)
            assert operation.product(kind, a, b, like).max() <= count * per_index


@pytest.mark.parametrize("bits", [2, 8, 9, 16])
def test_all_engines_give_a_training_step_the_same_bits(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Quantizer(format=IntFormat(bits))
    recipe = replace(
        recipes.int8(bits),
        grad_input=GradInput(grad_output=own),
        grad_weight=GradWeight(grad_output=own),
    )
    found = []
    eight = (OneDnnInt8(0), MatricesInt8(0, 0), UnfoldedInt8(0))
    for engines in ((*eight, *FLOATS), FLOATS, (reference,)):
        monkeypatch.setattr("qtrain.products.engines.choice.ENGINES", {"cpu": engines})
        torch.manual_seed(0)
        model: Any = quantize(nn.Conv2d(40, 8, 3, padding=1, groups=2), recipe=recipe)
        x = torch.randn(3, 40, 6, 6, requires_grad=True)
        output = model(x)
        output.square().sum().backward()
        found.append((output, x.grad, model.weight.grad))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_admission_is_tested_once_per_device_and_holds_here() -> None:
    assert all(admitted(engine, "cpu") for engine in FLOATS)
    before = admitted.cache_info().misses
    admitted(reference, "cpu")
    assert admitted.cache_info().misses == before


@pytest.mark.parametrize("engines", [ENGINES["cpu"], FLOATS, (reference,)], ids=["all", "f", "f64"])
def test_a_sum_of_zeros_is_the_integer_zero(engines: tuple[Engine, ...]) -> None:
    """0 times a negative element, alone in its sum, is no -0."""
    a = QTensor(torch.zeros(3, 1, dtype=torch.int8), None, None, IntFormat(8), (3, 1))
    b = QTensor(torch.full((1, 5, 1), -3, dtype=torch.int8), None, None, IntFormat(8), (1, 5, 1))
    found = multiply(LINEAR, a, b, a.elements, engines)
    assert not found.any() and not found.signbit().any()


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_sums_of_integers_are_exact_without_onednn(batch: int, kernel: int) -> None:
    """torch would convolve by NNPACK's Winograd there."""
    product = Product(Convolution((1, 1), (kernel // 2,) * 2, (1, 1), 1), "forward")
    x, w = integers(127, batch, 40, 8, 8), integers(8, 1, 24, 40, kernel, kernel)
    task = Task(product, *product.terms(x.shape, w.shape), Span(-127, 127), Span(-8, 8))
    exact = product.run(x.double(), w.double(), x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(Float32().product(task, x, w, x).double(), exact)


@pytest.mark.parametrize("engine", [Float32(), Float64(), RoundedSums()], ids=lambda e: e.name)
def test_no_exact_sum_is_by_cudnn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose algorithm depends on the shape; blocks along a sum are exact in fp64 units."""
    enabled = []

    class Watched(Convolution):
        def product(self, *args: Any) -> Tensor:
            enabled.append(torch.backends.cudnn.enabled)
            return super().product(*args)

    monkeypatch.setattr("qtrain.products.engines.plain_convolution.has_cudnn", lambda device: True)
    product = Product(Watched((1, 1), (1, 1), (1, 1), 1), "forward")
    x, w = integers(127, 2, 4, 6, 6), integers(127, 1, 3, 4, 3, 3)
    sizes = product.terms(x.shape, w.shape)
    task = Task(product, *sizes, Span(-127, 127), Span(-127, 127))
    if engine.promise == "float":
        task = Task(product, *sizes, ANY, ANY, "float", sums=False, unit=torch.float64)
    engine.product(task, x.float(), w.float(), x.float())
    assert enabled == [False] and torch.backends.cudnn.enabled


def test_products_do_not_see_torchs_default_dtype_and_device() -> None:
    """Unscaled operands, in a process that admits its engines under odd defaults."""
    script = textwrap.dedent("""
        import torch
        from qtrain.products.engines.engine import admitted
        from qtrain.products.engines.choice import ENGINES
        from qtrain.products.engines.float_units import reference
        from qtrain.products.convolution import Convolution
        from qtrain.products.operations import Linear
        from qtrain.products.product import Product
        from qtrain.products.blocks import multiply
        from quantizers import IntFormat, QTensor

        def q(*shape):
            elements = torch.arange(torch.Size(shape).numel(), device="cpu") % 255 - 127
            return QTensor(elements.view(shape).to(torch.int8), None, None, IntFormat(8), shape)

        torch.set_default_dtype(torch.float64)
        conv = Convolution((1, 1), (1, 1), (1, 1), 1)
        cases = [(Linear(), q(128, 128), q(1, 128, 128))]
        cases += [(conv, q(8, 64, 32, 32), q(1, 64, 64, 3, 3))]
        with torch.device("meta"):
            found = [multiply(Product(op, "forward"), a, b, a.elements) for op, a, b in cases]
        for (op, a, b), got in zip(cases, found):
            assert got.dtype == torch.float32
            exact = multiply(Product(op, "forward"), a, b, a.elements, (reference,))
            assert torch.equal(got, exact)
        print([admitted(engine, "cpu") for engine in ENGINES["cpu"]])
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == str([admitted(engine, "cpu") for engine in ENGINES["cpu"]])


@pytest.mark.parametrize("unit", [MatricesInt8(0, 0), UnfoldedInt8(0), OneDnnInt8(0)],
                         ids=lambda unit: unit.name)  # fmt: skip
def test_empty_linear_products_run_on_every_unit(unit: Any) -> None:
    for rows, summed in ((17, 0), (0, 5), (0, 0)):
        a = torch.zeros(rows, summed, dtype=torch.int8)
        b = torch.zeros(1, 7, summed, dtype=torch.int8)
        size = Task(LINEAR, summed, 1, Span(-128, 127), Span(-128, 127), sums=False)
        if unit.supports(size):
            got = unit.product(size, a, b, a, epilogue=Epilogue())
            assert got.shape == (rows, 7) and not got.any()
