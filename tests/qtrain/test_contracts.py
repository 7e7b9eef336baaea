"""The ten contracts that every conversion keeps, each as a named test.

1 products run on elements         6 a step repeats
2 integer products are exact       7 zero, NaN, Inf
3 no engine is trusted by name     8 no host synchronisation
4 off is off                       9 nothing fails silently
5 noise is a function             10 state lives in the state_dict
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import qtrain
from qtrain import plain_state_dict, quantize, quantize_, recipes, reseed, summary
from qtrain.layer_state import LayerState
from qtrain.products.blocks import multiply
from qtrain.products.convolution import Convolution
from qtrain.products.engines.choice import ENGINES, choose
from qtrain.products.engines.engine import admitted
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import Float32, RoundedSums, reference
from qtrain.products.engines.task import ANY, Span, Task
from qtrain.products.operations import Linear
from qtrain.products.product import Product
from quantizers import (
    OFF,
    IntFormat,
    QTensor,
    Quantizer,
    absmax,
    ema,
    fp16,
    int8,
    kernels,
    minmax,
    per_axis,
    percentile,
    stochastic,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def codes(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator(seed))


def convnet() -> nn.Sequential:
    """Convolution, batch-norm and linear; two layers share the input's path."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def mlp(width: int = 24) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def all_stochastic() -> qtrain.Recipe:
    """Noise in every role, so that a wrong count shows in every bit."""
    noisy = Quantizer(format=int8, rounding=stochastic())
    weight = replace(noisy, granularity=per_axis(0, 1))
    return replace(
        recipes.int8(),
        forward=qtrain.Forward(input=noisy, weight=weight),
        grad_input=qtrain.GradInput(grad_output=noisy),
        grad_weight=qtrain.GradWeight(grad_output=noisy),
    )


def results(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Output and all gradients of one training step, inputs' included."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    model.zero_grad()
    output = sum(model(x) for x in leaves)
    assert isinstance(output, Tensor)
    (output * normal(*output.shape, seed=99).to(output)).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [output.detach(), *(x.grad for x in leaves if x.grad is not None), *grads]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# 1 -----------------------------------------------------------------------------------------------


def test_contract_1_products_run_on_elements_and_scales_multiply_once() -> None:
    x, w = normal(64, 300), normal(40, 300, seed=1)
    layer = quantize(nn.Sequential(nn.Linear(300, 40, bias=False)))
    with torch.no_grad():
        layer[0].weight.copy_(w)
        got = layer(x)
    recipe = recipes.int8()
    state = recipe.forward.input.init_state((None, 300))  # type: ignore[attr-defined]
    xq = recipe.forward.input(x, state=state)
    wq = recipe.forward.weight(w.unsqueeze(0))
    assert xq.scale is not None and xq.zero_point is not None and wq.scale is not None
    integers = (xq.elements.long() - xq.zero_point.long()) @ wq.elements[0].long().t()
    hardware = integers.float() * (xq.scale * wq.scale.view(1, -1))
    assert torch.equal(got, hardware)
    # the peers' way, on dequantized operands, agrees in a fraction of the outputs only
    dequantized = xq.dequantize() @ wq.dequantize()[0].t()
    assert (dequantized == hardware).float().mean() < 0.5


# 2 -----------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (Linear(), (7, 130), (1, 9, 130)),
    "linear-long": (Linear(), (3, 5000), (1, 4, 5000)),
    "linear-3d": (Linear(), (2, 5, 33), (1, 4, 33)),
    "conv1x1": (Convolution((1, 1), (0, 0), (1, 1), 1), (2, 6, 5, 4), (1, 3, 6, 1, 1)),
    "conv3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 256, 5, 4), (1, 3, 256, 3, 3)),
    "conv5x5-stride": (Convolution((2, 2), (2, 2), (1, 1), 1), (2, 8, 9, 7), (1, 3, 8, 5, 5)),
    "conv3x3-dilated-groups": (
        Convolution((1, 2), (2, 1), (2, 2), 4), (2, 16, 9, 11), (4, 2, 4, 3, 3)
    ),
    "transposed": (
        Convolution((2, 2), (1, 1), (1, 1), 2, True, (1, 0)), (2, 8, 4, 5), (2, 3, 4, 3, 3)
    ),
    "conv1d": (Convolution((3,), (2,), (1,), 1), (2, 5, 17), (1, 4, 5, 7)),
    "conv3d": (
        Convolution((1, 2, 1), (1, 0, 1), (1, 1, 1), 1), (2, 3, 4, 5, 4), (1, 4, 3, 3, 2, 3)
    ),
    "empty-batch": (Convolution((1, 1), (1, 1), (1, 1), 1), (0, 4, 5, 4), (1, 3, 4, 3, 3)),
}  # fmt: skip


def operands(kind: Any, name: str, worst: bool) -> tuple[Product, Tensor, Tensor, Tensor, Task]:
    """Integer operands of one product, their `like`, and their bounds."""
    operation, input_shape, weight_shape = SHAPES[name]

    def draw(shape: tuple[int, ...], low: int, high: int, seed: int) -> Tensor:
        return torch.full(shape, low) if worst else codes(low, high, *shape, seed=seed)

    x, w = draw(input_shape, -128, 127, 1), draw(weight_shape, -127, 127, 2)
    output = operation.product("forward", x.double(), w.double(), x.double())
    g = draw(tuple(output.shape), -127, 127, 3)
    a, b, like = {
        "forward": (x, w, x),
        "grad_input": (g, w, x),
        "grad_weight": (g, x, w),
    }[kind]
    product = Product(operation, kind)
    spans = [Span(-(128 if t is x else 127), 127) for t in (a, b)]
    return product, a, b, like, Task(product, *product.terms(a.shape, b.shape), *spans)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("worst", [False, True], ids=["random", "worst-case"])
@pytest.mark.parametrize("kind", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("name", SHAPES)
def test_contract_2_every_engine_returns_the_exact_integers(
    name: str, kind: Any, worst: bool, device: str
) -> None:
    product, a, b, like, work = operands(kind, name, worst)
    # a double-precision convolution of 8-bit codes is exact: the oracle of integer sums
    expected = product.run(a.double(), b.double(), like.double()).long()
    assert work.bound >= int(expected.abs().max() if expected.numel() else 0)
    rounded = replace(work, sums=False)
    on = [x.to(device) for x in (a, b, like.float())]
    for engine in ENGINES[device]:
        if not admitted(engine, device):
            continue
        if engine.supports(work):
            got = engine.product(work, *on)
            assert torch.equal(got.cpu().long(), expected), engine.name
        if engine.supports(rounded):
            got = engine.product(rounded, *on, epilogue=Epilogue())
            assert torch.equal(got.cpu(), expected.float()), engine.name


def test_contract_2_the_oracle_itself_equals_int64_sums() -> None:
    product, a, b, like, _ = operands("forward", "conv3x3", False)
    columns = F.unfold(a.double(), (3, 3), padding=1).long()
    expected = (b.flatten(2)[0] @ columns).view(2, 3, 5, 4)
    assert torch.equal(product.run(a.double(), b.double(), like).long(), expected)


def test_contract_2_fp32_alone_would_be_wrong() -> None:
    a, b = torch.full((1, 4096), 127), torch.full((1, 1, 4096), 127)
    assert 4096 * 127 * 127 > 2**24
    work = Task(Product(Linear(), "forward"), 4096, 1, Span(-127, 127), Span(-127, 127))
    got = Float32().product(work, a, b, a.float())
    assert got.dtype == torch.int32 and int(got) == 66064384


@pytest.mark.parametrize("bits", [2, 8, 12, 16])
def test_contract_2_the_epilogue_rounds_sum_scales_product_and_bias_once_each(bits: int) -> None:
    fmt = IntFormat(bits)
    a = fmt.codes()[codes(0, fmt.high - fmt.low, 6, 700, seed=1)]
    b = fmt.codes()[codes(0, fmt.high - fmt.low, 1, 5, 700, seed=2)]
    sa, sb = torch.rand(6, 1, generator=generator(3)), torch.rand(1, 5, 1, generator=generator(4))
    got = multiply(
        Product(Linear(), "forward"),
        QTensor(a, sa, None, fmt, (1, 700)),
        QTensor(b, sb, None, fmt, (1, 1, 700)),
        a.float(),
    )
    integers = a.long() @ b[0].long().t()
    scales = (sa.double() * sb.view(1, 5).double()).float()
    expected = (integers.float().double() * scales.double()).float()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_contract_2_layout_and_threads_change_no_bit(bits: int) -> None:
    x, model = normal(4, 3, 8, 8), convnet()
    model[1] = nn.Identity()  # a batch-norm's sums depend on the layout
    forward = quantize(model, bits)
    expected = forward(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(forward(x), expected)
    finally:
        torch.set_num_threads(threads)
    last = copy.deepcopy(forward).to(memory_format=torch.channels_last)
    assert torch.equal(last(x.contiguous(memory_format=torch.channels_last)), expected)


def test_contract_2_a_float_operand_stays_within_its_bound_of_float64() -> None:
    product, a, b, like, _ = operands("grad_weight", "conv3x3", False)
    g = Quantizer(format=qtrain_bf16(), range=None)(normal(*a.shape))
    xq = QTensor(b.to(torch.int8), torch.tensor(0.5).view(1, 1, 1, 1), None, int8, tuple(b.shape))
    got = multiply(product, g, xq, like.float())
    left, right = g.elements.double(), b.double() * 0.5
    exact = product.run(left, right, like.double())
    magnitude = product.run(left.abs(), right.abs(), like.double())
    terms = 2 * 5 * 4
    assert bool(((got - exact).abs() <= terms * 2**-23 * magnitude).all())


def qtrain_bf16() -> Any:
    from quantizers import bf16

    return bf16


# 3 -----------------------------------------------------------------------------------------------


class _Saturating(Float32):
    """A unit that saturates partial sums in 16 bits, as int8 instructions without VNNI do."""

    name = "saturating"

    def product(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().product(*args, **kwargs).clamp(-(2**15), 2**15 - 1)


class _Late(Float32):
    """A unit whose fp32 accumulator is trusted beyond 2^24."""

    name = "late"

    def _part(self, task: Task) -> int:
        return task.count


class _Coarse(RoundedSums):
    """Units that round each operand to 4 significant bits."""

    name = "coarse"

    def product(self, task: Task, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (a, b))
        return super().product(task, a, b, *args, **kwargs)


def test_contract_3_an_inexact_unit_of_floats_is_refused_too() -> None:
    assert admitted(RoundedSums(), "cpu") and not admitted(_Coarse(), "cpu")
    product = Product(Linear(), "forward")
    task = Task(product, 64, 1, ANY, ANY, "float", sums=False)
    engines = _Coarse(), Float32(), RoundedSums()
    assert choose([task], "cpu", engines)[0] is engines[-1]
    with pytest.raises(ValueError, match=r"no engine \(coarse, float32\) multiplies floating"):
        choose([task], "cpu", engines[:2])


@pytest.mark.parametrize("engine", [_Saturating(), _Late()], ids=lambda engine: engine.name)
def test_contract_3_an_engine_that_is_wrong_is_refused_whatever_it_claims(engine: Any) -> None:
    assert not admitted(engine, "cpu")
    assert chosen(4096, 128, 127, (engine, reference)) == "float64"


def chosen(count: int, a: int, b: int, engines: Any = ENGINES["cpu"]) -> str:
    work = Task(Product(Linear(), "forward"), count, 1, Span(-a, a), Span(-b, b))
    return choose([work], "cpu", engines)[0].name


def test_contract_3_engines_are_admitted_here_and_chosen_from_bounds() -> None:
    assert admitted(Float32(), "cpu") and admitted(reference, "cpu")
    assert chosen(4608, 128, 127, (Float32(), reference)) == "float32"
    assert chosen(100, 2**15, 255) == "float64"
    with pytest.raises(ValueError, match="2\\^53"):
        chosen(2**30, 2**15, 2**15)


def test_contract_3_a_refused_engine_has_a_line_in_the_summary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, other = _Saturating(), _Late()
    monkeypatch.setattr("qtrain.conversion.summary.ENGINES", {"cpu": (asked, other, reference)})
    assert "refused " not in str(summary(quantize(mlp())))  # none was asked for: none is tried
    assert chosen(4096, 128, 127, (asked, reference)) == "float64"
    text = str(summary(quantize(mlp())))
    assert "refused    engine saturating" in text and other.name not in text


def test_contract_3_results_are_exact_where_the_processor_lacks_int8_instructions() -> None:
    script = textwrap.dedent("""
        import torch
        from qtrain.products.engines.engine import admitted
        from qtrain.products.engines.choice import ENGINES
        from qtrain.products.engines.task import Span, Task
        from qtrain.products.convolution import Convolution
        from qtrain.products.product import Product
        op = Convolution((1, 1), (1, 1), (1, 1), 1)
        x, w = torch.full((2, 256, 5, 4), -128), torch.full((1, 3, 256, 3, 3), 127)
        expected = op.product("forward", x.double(), w.double(), x.double()).long()
        work = Task(Product(op, "forward"), 256, 9, Span(-128, 127), Span(-127, 127))
        for engine in ENGINES["cpu"]:
            if "int8" in engine.name:
                assert not admitted(engine, "cpu"), engine.name
                continue
            if not engine.has_units("cpu"):
                continue
            assert admitted(engine, "cpu"), engine.name
            if engine.supports(work):
                got = engine.product(work, x, w, x.float())
                assert torch.equal(got.long(), expected), engine.name
    """)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


# 4 -----------------------------------------------------------------------------------------------


def test_contract_4_a_model_that_is_off_equals_torch_bit_for_bit() -> None:
    plain, x = convnet(), normal(4, 3, 8, 8)
    off = quantize(plain, recipe="fp32")
    assert same(results(off, x), results(plain, x))
    assert same(list(plain_state_dict(off).values()), list(plain.state_dict().values()))


def test_contract_4_a_layer_that_is_off_is_torchs_own_derivatives_included() -> None:
    layer = quantize(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), recipe="fp32")
    x = normal(3, 6).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert bool((second != 0).any()), "torch's layers can be differentiated twice"


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # long enough a sum that a bias added afterwards would change bits
    "linear": (lambda: nn.Linear(1031, 65), (37, 1031)),
    "linear-3d": (lambda: nn.Linear(12, 7), (2, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("on", ["forward", "grad_input", "grad_weight"])
def test_contract_4_a_product_that_is_off_equals_torch_bit_for_bit(name: str, on: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    plain, x = make(), normal(*shape)
    q = Quantizer(format=int8)
    slots: dict[str, Any] = {
        "forward": {"forward": qtrain.Forward(input=q, weight=q)},
        "grad_input": {"grad_input": qtrain.GradInput(grad_output=q, weight=q)},
        "grad_weight": {"grad_weight": qtrain.GradWeight(grad_output=q, input=q)},
    }
    if on == "forward":  # the backward products keep the unquantized operands
        slots["forward"]["grad_input"] = qtrain.GradInput(weight=OFF)
        slots["forward"]["grad_weight"] = qtrain.GradWeight(input=OFF)
    partly = quantize(plain, recipe=qtrain.Recipe(name="partly", **slots[on]))
    got, expected = results(partly, x), results(plain, x)
    names = ["forward", "grad_input", "grad_weight", "grad_bias"]
    # where grad_weight is quantized, torch's call for the bias alone would compute it once more
    summed = on == "grad_weight"
    for product_name, a, b in zip(names, got, expected, strict=True):
        if product_name == "grad_bias" and summed:
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b) == (product_name != on), product_name


# 5 -----------------------------------------------------------------------------------------------


def step_noise(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([r.flatten() for r in results(model, x)])


def test_contract_5_nothing_is_drawn_from_torchs_generator() -> None:
    model, x = quantize(mlp(), recipe=all_stochastic()), normal(8, 24)
    before = torch.get_rng_state()
    results(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_contract_5_every_forward_layer_and_role_draws_other_noise() -> None:
    noisy = quantize(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)), recipe=all_stochastic())
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.zero_()
        for layer in noisy:
            layer.weight.fill_(0.30000001)
            layer.weight[0, 0] = 1.0
    x = normal(16, 24)
    first, second = noisy[0](x), noisy[0](x)
    assert not torch.equal(first, second)
    assert not torch.equal(first, noisy[1](x))


def test_contract_5_a_submodule_called_alone_advances_its_own_count_only() -> None:
    model, x = quantize(mlp(), recipe=all_stochastic()), normal(8, 24)
    twin = copy.deepcopy(model)
    model[0](x)
    assert model[0].product.noise_count == 1 and model[2].product.noise_count == 0
    assert torch.equal(twin[2](x), model[2](x))
    model.eval()
    with torch.no_grad():
        model(x)
    assert model[0].product.noise_count == 1, "evaluation does not advance the count"
    model(x)
    assert model[0].product.noise_count == 2, "a gradient that flows does"


class _Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.tanh(self.layer(x)))
        return y


class _Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return y


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("case", ["layer", "shared-layer", "nested"])
@pytest.mark.parametrize("forwards", [1, 2], ids=["one-forward", "two-forwards"])
def test_contract_5_and_6_recomputation_repeats_the_noise(
    reentrant: bool, case: str, forwards: int
) -> None:
    inner: nn.Module = quantize(mlp(), recipe=all_stochastic())
    if case == "shared-layer":
        inner = _Twice(inner)
    checkpointed: nn.Module = _Checkpointed(copy.deepcopy(inner), reentrant)
    if case == "nested":
        if reentrant:
            pytest.skip("torch does not nest reentrant checkpoints in this form")
        checkpointed = _Checkpointed(checkpointed, reentrant)
    inputs = [normal(8, 24, seed=seed) for seed in range(forwards)]
    got, expected = results(checkpointed, *inputs), results(inner, *inputs)
    data = 1 + forwards  # output and gradients of the inputs
    assert same(got[:data], expected[:data])
    for a, b in zip(got[data:], expected[data:], strict=True):
        # recomputed segments may add their parts of a parameter's gradient in another order
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
    counts = [m.noise_count for m in inner.modules() if isinstance(m, LayerState)]
    repeated = [m.noise_count for m in checkpointed.modules() if isinstance(m, LayerState)]
    assert same(repeated, counts), "a recomputation advances nothing"


def test_contract_5_recomputation_leaves_running_ranges_alone() -> None:
    inner = quantize(mlp())
    checkpointed = _Checkpointed(copy.deepcopy(inner), False)
    results(inner, normal(8, 24))
    results(checkpointed, normal(8, 24))
    expected = dict(inner.named_buffers())
    assert all(
        torch.equal(buffer, expected[name.removeprefix("inner.")])
        for name, buffer in checkpointed.named_buffers()
    )


def test_contract_5_gradient_accumulation_uses_each_micro_batchs_noise() -> None:
    model = quantize(mlp(), recipe=all_stochastic())
    twin = copy.deepcopy(model)
    xs = [normal(8, 24, seed=s) for s in range(2)]
    for x in xs:  # backward after each forward
        model(x).sum().backward()
    sum(twin(x) for x in xs).sum().backward()  # two forwards, then one backward
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)  # order of one addition


def test_contract_5_a_copy_repeats_until_it_is_reseeded() -> None:
    model, x = quantize(mlp(), recipe=all_stochastic()), normal(8, 24)
    twin, other = copy.deepcopy(model), reseed(copy.deepcopy(model), 1)
    expected = step_noise(model, x)
    assert torch.equal(step_noise(twin, x), expected)
    assert not torch.equal(step_noise(other, x), expected)


def test_contract_5_ranks_share_the_weights_noise_and_not_the_datas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(rank: int, slot: str) -> Tensor:
        monkeypatch.setattr("qtrain.products.call.rank", lambda: rank)
        noisy = Quantizer(format=int8, rounding=stochastic())
        own = qtrain.Forward(**{slot: noisy})
        model = quantize(mlp(), recipe=qtrain.Recipe(name="one", forward=own))
        y: Tensor = model(normal(8, 24))
        return y

    assert torch.equal(forward(0, "weight"), forward(1, "weight"))
    assert not torch.equal(forward(0, "input"), forward(1, "input"))


# 6 -----------------------------------------------------------------------------------------------


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, target = normal(8, 3, 8, 8, seed=step), codes(0, 4, 8, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()


def test_contract_6_training_repeats_and_resumes_bit_for_bit() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = quantize(convnet(), recipe=replace(recipes.int8(), activation=fp16), norm="range")
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    model, optimizer = fresh()
    train_steps(model, optimizer, range(6))
    again, other = fresh()
    train_steps(again, other, range(3))
    saved = copy.deepcopy((again.state_dict(), other.state_dict()))
    resumed, last = fresh()
    resumed.load_state_dict(saved[0])
    last.load_state_dict(saved[1])
    train_steps(resumed, last, range(3, 6))
    assert same(list(resumed.state_dict().values()), list(model.state_dict().values()))


@pytest.mark.costly
def test_contract_6_compiled_and_eager_share_noise_and_codes() -> None:
    model, x = quantize(mlp(), recipe=all_stochastic()), normal(8, 24)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        compiled = torch.compile(twin, fullgraph=True)
        for seed in range(2):
            a, b = results(model, x + seed), results(compiled, x + seed)
            # integer products, same operands: the same bits; a sum of floats may reorder
            for left, right in zip(a, b, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
            assert torch.equal(a[0], b[0])
    assert twin[0].product.noise_count == 2


# 7 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_contract_7_exact_zeros_stay_zero(symmetric: bool) -> None:
    q = Quantizer(
        format=IntFormat(8, signed=symmetric, symmetric=symmetric),
        range=minmax,
        rounding=stochastic(),
    )
    x = normal(64, 64) + 0.3
    x[::2] = 0.0
    value = q(x, key=torch.tensor(5)).dequantize()
    assert bool((value[::2] == 0).all())


@pytest.mark.parametrize("path", [nullcontext, kernels.eager], ids=["fused", "eager"])
def test_contract_7_a_dead_channel_leaves_the_other_channels_gradient_alone(path: Any) -> None:
    torch.manual_seed(0)
    alive = nn.Conv2d(6, 8, 3)
    with torch.no_grad():
        alive.weight[3] = 0.0  # a zero range: scale 0, codes 0
    model, x = quantize(nn.Sequential(alive)), normal(4, 6, 8, 8)
    with path():
        exact, got = results(nn.Sequential(alive), x), results(model, x)
    error = (got[1] - exact[1]).norm() / exact[1].norm()
    assert error < 0.05, "26 dB: a scale of 1 there would drown the others' codes"
    assert all(bool(torch.isfinite(t).all()) for t in got)


def test_contract_7_a_dead_input_and_a_zero_gradient_train_on() -> None:
    model = quantize(convnet(), norm="range")
    assert all(bool(torch.isfinite(t).all()) for t in results(model, torch.zeros(4, 3, 8, 8)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "rule",
    [absmax, minmax, percentile(0.9), ema(train_on="running")],
    ids=["absmax", "minmax", "percentile", "ema"],
)
def test_contract_7_a_non_finite_element_makes_its_granule_non_finite(
    value: float, rule: Any
) -> None:
    q = Quantizer(format=int8, granularity=per_axis(0), range=rule)
    if rule == ema(train_on="running"):
        q = replace(q, granularity=qtrain_per_tensor())
    x = normal(4, 32)
    state = q.init_state((4, 32))
    if state:
        q(x, state=state)
    x[1, 3] = value
    out = q(x, state=state or None)
    assert out.scale is not None
    finite = torch.isfinite(out.dequantize()).all(1)
    expected = [False] * 4 if state else [True, False, True, True]
    assert finite.tolist() == expected


def qtrain_per_tensor() -> Any:
    from quantizers import per_tensor

    return per_tensor


def test_contract_7_a_non_finite_gradient_reaches_the_optimizer() -> None:
    model = quantize(mlp())
    x = normal(4, 24).requires_grad_()
    (model(x) * torch.tensor(float("inf"))).sum().backward()
    assert all(not bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.dim() > 1)


# 8 -----------------------------------------------------------------------------------------------


class _NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on the operations by which a tensor's value reaches Python."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["int8", "banner2018", "bf16"])
def test_contract_8_a_training_step_reads_no_value(recipe: str) -> None:
    model, x = quantize(convnet(), recipe=recipe, norm="range"), normal(4, 3, 8, 8)
    results(model, x)  # the first forward is watched, and engines are tested once
    with _NoSync():
        model(x).sum().backward()


def test_contract_8_a_training_step_compiles_to_one_graph() -> None:
    model, x = quantize(convnet(), norm="range"), normal(4, 3, 8, 8)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_contract_8_cuda_never_waits_for_the_device() -> None:
    model, x = quantize(convnet(), norm="range").cuda(), normal(4, 3, 8, 8).cuda()
    results(model, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# 9 -----------------------------------------------------------------------------------------------


def test_contract_9_an_override_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"conv9.*match no layer"):
        quantize(convnet(), overrides={"conv9": None})


def test_contract_9_a_granularity_no_product_can_honour_is_an_error() -> None:
    per_input_channel = Quantizer(format=int8, granularity=per_axis(1))
    recipe = qtrain.Recipe(name="bad", forward=qtrain.Forward(input=per_input_channel, weight=OFF))
    with pytest.raises(ValueError, match=r"layer '0'.*input of forward.*axis 1"):
        quantize(mlp(), recipe=recipe)(normal(4, 24))


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)
        return F.scaled_dot_product_attention(y, y, y) @ y.transpose(-1, -2)


def test_contract_9_functional_products_and_idle_layers_are_named() -> None:
    model = quantize(nn.Sequential(_Functional()), functional=False)
    with pytest.warns(UserWarning) as caught:
        model(normal(2, 4, 8))
    text = str(caught[0].message)
    assert "0: bmm ran in full precision" in text and "functional=True" in text
    assert "0.unused: converted, but never ran" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(normal(2, 4, 8))  # said once
    found = summary(model, normal(2, 4, 8))
    assert found.never_ran == ["0.unused"] and list(found.outside or {}) == ["0"]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_contract_9_attention_runs_no_product_outside_the_recipe(train: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    model = quantize(encoder).train(train)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    found = summary(model, normal(3, 5, 16), src_key_padding_mask=padding)
    assert found.outside == {} and found.never_ran == []


# 10 ----------------------------------------------------------------------------------------------


def test_contract_10_a_plain_state_dict_loads_strictly_and_comes_back() -> None:
    plain = convnet()
    model = quantize(plain, norm="range")
    results(model, normal(4, 3, 8, 8))
    assert model.load_state_dict(plain.state_dict(), strict=True)
    assert convnet().load_state_dict(plain_state_dict(model), strict=True)


def test_contract_10_counters_and_ranges_travel_with_the_state_dict() -> None:
    model, x = quantize(convnet(), recipe=all_stochastic()), normal(4, 3, 8, 8)
    results(model, x)
    other = quantize(convnet(), recipe=all_stochastic(), seed=5)
    other.load_state_dict(model.state_dict(), strict=True)
    assert same(results(other, x), results(model, x))


def test_contract_10_conversion_in_place_keeps_the_optimizers_parameters() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    quantize_(model)
    before = model[0].weight.detach().clone()
    results(model, normal(4, 24))
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
