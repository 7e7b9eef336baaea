"""The compiled passes of batch-norm: bit for bit the torch passes where no sum is taken, and within
the rounding of an fp32 sum of the fp64 definition where one is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from qtrain.conversion.kinds import convert_norm_
from qtrain.norms import operations, passes
from qtrain.norms.constants import largest_factor, range_factor
from qtrain.norms.deferred import DEFERRED, Deferred
from qtrain.norms.deviations import Deviation, l1, l2, linf, range_, topk
from qtrain.norms.kernels import channels as norm_kernels
from qtrain.norms.kernels import compiled_passes, compiled_statistics, memory, residual
from qtrain.norms.kernels.channels import CompiledChannels
from qtrain.norms.normalize import channels
from qtrain.norms.passes import Affine, Channels, Codes, Extra, Slope
from qtrain.norms.recipe import NormRecipe, StatisticsGradient
from qtrain.norms.samples import Cut, cuts
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    absmax,
    bf16,
    e4m3,
    fp16,
    int8,
    kernels,
    minmax,
    round_to,
    uint8,
)
from quantizers.kernels import serving

DEVIATIONS = [l2(), l1(), linf(), topk(3), range_(), range_(7), range_(3, "paper")]
TIMES = [l2(times=4), l1(times=0.25), linf(times=4), range_(7, times=0.25)]
CARRIES: list[StatisticsGradient] = ["exact", "l2", "detached"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OWN: dict[torch.dtype, FloatFormat] = {torch.float16: fp16, torch.bfloat16: bf16}
SHAPES = {
    "1d": (37, 5),
    "1d with length": (9, 3, 7),
    "2d": (6, 8, 5, 3),
    "3d": (3, 4, 2, 3, 3),
    "one channel": (11, 1, 3, 3),
    "one place": (40, 6, 1, 1),
    "one sample": (1, 5, 4, 6),
    "two elements": (2, 3),
    "a block and one": (129, 2),
    "many rows": (31, 3, 17, 19),
    "two long blocks across planes": (3, 2, 7, 1000),
}
#: whether the elements of a channel are neighbours in memory, or those of a place
LAYOUTS = pytest.mark.parametrize("planes", [False, True], ids=["channels-last", "contiguous"])
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def own_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gaussian(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shift: float = 0.0,
    planes: bool = False,
) -> Tensor:
    """(N, C, *S), contiguous with planes, else channels-last, whose channels differ in location and
    scale; the numbers do not depend on the layout."""
    rows = (shape[0], *shape[2:], shape[1])
    x = torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    channel = torch.arange(shape[1], dtype=torch.float64)
    x = (x * (1 + channel % 3) + shift * channel).to(dtype).movedim(-1, 1)
    return x.contiguous() if planes else x


def norm_for(x: Tensor, recipe: NormRecipe, **settings: Any) -> Any:
    """A converted norm for x, its scales of both signs, its shifts away from 0."""
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[x.dim() - 2]
    norm = kind(x.shape[1], **settings)
    channel = torch.arange(x.shape[1], dtype=torch.float32)
    with torch.no_grad():
        norm.weight.copy_((1 + channel / 4) * (-1) ** channel)
        norm.bias.copy_(channel / 3 - 0.5)
    convert_norm_(norm, recipe)
    return norm


def results(
    norm: Any, x: Tensor, grad: Tensor, *, relu: bool = False, served: bool = True
) -> dict[str, Tensor]:
    """Output, the gradients, the running statistics; by the kernels or by torch."""
    norm.zero_grad()
    norm.reset_running_stats()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if served:
        output = norm.fused_relu(x, False) if relu else norm(x)
        assert output is not None
        output.backward(grad)
    else:
        with kernels.eager():
            output = norm(x).relu() if relu else norm(x)
            output.backward(grad)
    found = {"output": output, "grad_input": x.grad, "grad_weight": norm.weight.grad}
    found |= {"grad_bias": norm.bias.grad, "mean": norm.running_mean, "var": norm.running_var}
    return {
        name: t.detach().clone(memory_format=torch.preserve_format) for name, t in found.items()
    }


def affine_of(x: Tensor, activation: FloatFormat | None = None, relu: bool = False) -> Affine:
    channel = torch.arange(x.shape[1], dtype=torch.float32)
    mean = x.float().mean(passes.others(x))
    return Affine(mean, 0.7 * (-1) ** channel / (1 + channel), channel / 3 - 0.5, activation, relu)


def laid(x: Tensor, planes: bool) -> bool:
    """Whether x lies as gaussian's tensors do."""
    return (x if planes else x.movedim(1, -1)).is_contiguous()


def compiled(x: Tensor) -> CompiledChannels:
    """The kernels' passes of x, which they serve."""
    found = channels(x)
    assert isinstance(found, CompiledChannels)
    return found


def codes_of(x: Tensor, of: Affine, fmt: IntFormat) -> Codes:
    found = compiled(x).codes(of, fmt)
    assert found is not None
    return found


class _Calls:
    """Counts what a class is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, *names: str) -> None:
        self.count = 0
        for name in names:
            monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return call


@pytest.fixture
def torch_passes(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    return _Calls(monkeypatch, Channels, "sample", "affine", "sums", "grad_input", "add_at")


@pytest.fixture
def kernel_passes(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    return _Calls(monkeypatch, CompiledChannels, "sample", "affine", "sums", "grad_input", "add_at")


# The definition, differentiated by torch in fp64 --------------------------------------------------


def sigma_of(deviation: Deviation, rows: Tensor) -> Tensor:
    """rows: (C, M), centered."""
    return deviation.times * once(deviation, rows)


def once(deviation: Deviation, rows: Tensor) -> Tensor:
    """The same, with its constant taken one time."""
    count = rows.shape[1]
    if deviation.name == "l2":
        return rows.square().mean(1).sqrt()
    if deviation.name == "l1":
        return (torch.pi / 2) ** 0.5 * rows.abs().mean(1)
    if deviation.name in ("linf", "topk"):
        k = min(getattr(deviation, "k", 1), count)
        picked = rows.abs().topk(k, dim=1).values
        return largest_factor(deviation.constant, count, k) * picked.mean(1)
    assert deviation.name == "range"
    chunks = min(deviation.chunks, count // 2)  # type: ignore[attr-defined]
    total = torch.zeros((), dtype=rows.dtype)
    for part in rows.tensor_split(chunks, dim=1):
        factor = range_factor(deviation.constant, part.shape[1])
        total = total + factor * (part.max(1).values - part.min(1).values)
    return total / chunks


class Defined(NamedTuple):
    """Values by name, and per channel the size of the terms that each is a sum of."""

    values: dict[str, Tensor]
    sizes: dict[str, Tensor]


def defined(norm: Any, x: Tensor, grad: Tensor, relu: bool = False) -> Defined:
    """What `results` should find, without any rounding of the output."""
    recipe: NormRecipe = norm.recipe
    leaves = [t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias)]
    rows = leaves[0].transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    rows = rows - mean.unsqueeze(1)
    sigma = sigma_of(recipe.deviation, rows)
    squared = recipe.deviation.name == "l2"
    divisor = (sigma.square() + norm.eps).sqrt() if squared else sigma + norm.eps
    if recipe.statistics_gradient != "exact":
        divisor = divisor.detach()
    if recipe.statistics_gradient == "l2":
        size = rows.square().mean(1).sqrt()
        divisor = divisor * size / size.detach()
    y = rows / divisor.unsqueeze(1) * leaves[1].unsqueeze(1) + leaves[2].unsqueeze(1)
    if relu:
        y = y.relu()
    output = y.unflatten(1, (x.shape[0], *x.shape[2:])).transpose(0, 1)
    grads = torch.autograd.grad(output, leaves, grad.double())
    count = rows.shape[1]
    var = sigma.square() * (count / (count - 1) if squared else 1)
    scale = (leaves[1] / divisor).detach().abs()
    g = (grad.double() * (output > 0)) if relu else grad.double()
    g = g.transpose(0, 1).flatten(1).abs()
    names = ("output", "grad_input", "grad_weight", "grad_bias", "mean", "var")
    tracked = (0.1 * mean, 0.9 + 0.1 * var)
    values = dict(zip(names, (output.detach(), *grads, *tracked), strict=True))
    near = rows.detach().abs().amax(1)
    sizes = {
        "output": near * scale + leaves[2].detach().abs(),
        # a spike is a sum of the channel's gradients: the gradient itself where it is larger
        "grad_input": torch.maximum(g.amax(1) * scale, grads[0].transpose(0, 1).flatten(1).amax(1)),
        "grad_weight": (g * near.unsqueeze(1) / divisor.detach().unsqueeze(1)).norm(dim=1),
        "grad_bias": g.norm(dim=1),
        "mean": x.double().transpose(0, 1).flatten(1).abs().amax(1),
        "var": tracked[1],
    }
    return Defined(values, sizes)


def assert_near(found: dict[str, Tensor], want: Defined, ulps: dict[str, float]) -> None:
    """Each tensor within 3e-6 of the size of what it is a sum of: fp32 sums within blocks of 128
    rows err by less than 128 * 2^-24 = 8e-6 of the terms' magnitudes, in practice by the root of
    that; what was rounded more coarsely afterwards, also by that rounding."""
    for name, value in want.values.items():
        size = want.sizes[name].detach()
        if value.dim() > 1:
            size = size.view(1, -1, *[1] * (value.dim() - 2))
        allowed = 3e-6 * size + ulps.get(name, 0.0) * value.abs() + 1e-7
        worst = ((found[name].double() - value).abs() / allowed).max().item()
        assert worst <= 1, f"{name}: {worst:.2f} of what is allowed"


HALF_ULP = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ROUNDING = {None: 0.0, fp16: 2.0**-11, bf16: 2.0**-8, e4m3: 2.0**-4}


@LAYOUTS
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("deviation", DEVIATIONS + TIMES, ids=str)
def test_every_deviation_equals_its_fp64_definition(
    deviation: Deviation, carry: StatisticsGradient, torch_passes: _Calls, planes: bool
) -> None:
    for shape in SHAPES.values():
        x, grad = (
            gaussian(*shape, shift=0.3, planes=planes),
            gaussian(*shape, seed=1, planes=planes),
        )
        norm = norm_for(x, NormRecipe(deviation=deviation, statistics_gradient=carry))
        found = results(norm, x, grad)
        assert_near(found, defined(norm, x, grad), {})
        assert laid(found["output"], planes) and laid(found["grad_input"], planes)
    assert torch_passes.count == 0  # the kernels served every one


@pytest.mark.parametrize("activation", [None, fp16, bf16, e4m3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("deviation", DEVIATIONS[:6], ids=str)
def test_every_dtype_and_activation(
    deviation: Deviation,
    dtype: torch.dtype,
    activation: FloatFormat | None,
    torch_passes: _Calls,
) -> None:
    for carry in CARRIES:
        recipe = NormRecipe(deviation=deviation, statistics_gradient=carry, activation=activation)
        x, grad = gaussian(40, 6, 4, 3, dtype=dtype), gaussian(40, 6, 4, 3, dtype=dtype, seed=1)
        norm = norm_for(x, recipe)
        found = results(norm, x, grad)
        output = HALF_ULP[dtype] + ROUNDING[activation]
        rounded = {"output": 1.01 * output, "grad_input": HALF_ULP[dtype]}
        tie = 2.0**-10 if activation == e4m3 else 0.0  # half of e4m3's smallest number
        expected = defined(norm, x, grad)
        if tie:
            want = expected.values["output"]
            small = want.abs() < 2.0**-6
            assert ((found["output"].double() - want)[small].abs() <= tie * 1.01).all()
            found["output"] = torch.where(small, want, found["output"].double())
        assert_near(found, expected, rounded)
    assert torch_passes.count == 0


@LAYOUTS
@pytest.mark.parametrize("activation", [None, fp16, bf16], ids=str)
@pytest.mark.parametrize("deviation", [l2(), l1(), linf(), range_(7)], ids=str)
def test_with_a_relu_of_the_rounded_output(
    deviation: Deviation, activation: FloatFormat | None, torch_passes: _Calls, planes: bool
) -> None:
    for shape in ((40, 5), (6, 8, 5, 3), (129, 3, 3)):
        recipe = NormRecipe(deviation=deviation, activation=activation)
        x, grad = gaussian(*shape, planes=planes), gaussian(*shape, seed=1, planes=planes)
        norm = norm_for(x, recipe)
        found = results(norm, x, grad, relu=True)
        # elements within rounding of 0 are on or off by luck, and none of these is
        assert_near(found, defined(norm, x, grad, relu=True), {"output": ROUNDING[activation]})
    assert torch_passes.count == 0


# Pass by pass, the same bits ----------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_affine_has_the_bits_of_torch(
    dtype: torch.dtype, shape: tuple[int, ...], planes: bool
) -> None:
    x = gaussian(*shape, dtype=dtype, planes=planes)
    for relu in (False, True):
        for activation in (None, fp16, bf16, e4m3):
            of = affine_of(x, activation, relu)
            for target in (dtype, torch.float32):
                got = compiled(x).affine(of, target)
                assert got.dtype == target and laid(got, planes)
                assert torch.equal(got, Channels(x).affine(of, target)), (relu, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_affine_rounds_every_kind_of_number_as_torch(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    own = every.view(dtype) if dtype != torch.float32 else every.float() * 1.0003
    x = torch.stack([own, own.flip(0)], 1)
    one = torch.ones(2)
    for scale in (1.0, 1e-7, 3e3):  # subnormal, and overflowing, in fp16
        for activation in (None, fp16, bf16):
            for relu in (False, True):
                of = Affine(0 * one, scale * one, 0 * one, activation, relu)
                got = compiled(x).affine(of, torch.float32)
                want = Channels(x).affine(of, torch.float32)
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@LAYOUTS
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_input_has_the_bits_of_torch(
    dtype: torch.dtype, grad_dtype: torch.dtype, planes: bool
) -> None:
    for shape in ((37, 5), (6, 8, 5, 3)):
        x = gaussian(*shape, dtype=dtype, planes=planes)
        grad = gaussian(*shape, dtype=grad_dtype, seed=1, planes=planes)
        channel = torch.arange(shape[1], dtype=torch.float32)
        x[0] = affine_of(x).mean.to(dtype).view(-1, *[1] * (x.dim() - 2))  # a sign may be 0
        offset, factor = 0.1 - channel / 7, channel / 5 - 0.3
        slopes = [None, Slope(factor, "centered"), Slope(factor, "sign")]
        for slope in slopes:
            for activation, relu in ((None, False), (OWN.get(dtype), True)):
                of = affine_of(x, activation, relu)
                args = compiled(x).aligned(grad), of, offset, slope, dtype
                got, want = compiled(x).grad_input(*args), Channels(x).grad_input(*args)
                assert got.dtype == dtype and got.stride() == x.stride()
                assert torch.equal(got, want), (slope, relu)


@LAYOUTS
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_those_of_fp64(dtype: torch.dtype, grad_dtype: torch.dtype, planes: bool) -> None:
    for shape in ((37, 5), (129, 2), (31, 3, 17, 19), (3, 2, 7000)):
        x = gaussian(*shape, dtype=dtype, planes=planes)
        grad = gaussian(*shape, dtype=grad_dtype, seed=1, planes=planes)
        extras: tuple[Extra, ...] = (None, "squares", "signs")
        for extra in extras:
            for activation, relu in ((None, False), (OWN.get(dtype), True)):
                of = affine_of(x, activation, relu)
                got = compiled(x).sums(grad, of, extra)
                # the mask is of the fp32 output, the sums are of fp64 numbers
                y = Channels(x).affine(of, torch.float32)
                g = torch.where((y <= 0) & relu, 0.0, grad.double())
                centered = (x.float() - passes.lift(of.mean, x.float())).double()
                more = {"squares": centered.square(), "signs": centered.sign()}
                terms = [g, g * centered, more.get(str(extra))]
                for have, term in zip(got, terms, strict=True):
                    assert (have is None) == (term is None)
                    if have is None or term is None:
                        continue
                    axes = passes.others(x)
                    bound = 2.0**-24 * 12 * term.abs().sum(axes)  # about the root of a block's 128
                    assert ((have.double() - term.sum(axes)).abs() <= bound).all()


@pytest.mark.parametrize("activation", [None, fp16, bf16], ids=str)
def test_the_gradient_is_masked_where_the_rounded_output_is_zero(
    activation: FloatFormat | None,
) -> None:
    """Outputs of 0 before the rounding, and only after it: k * 2^-26 in fp16, 2^-135 in bf16."""
    x = torch.arange(-8.0, 9.0).repeat(3).view(51, 1)
    grad = torch.arange(1.0, 52.0).view(51, 1)
    zero, offset = torch.zeros(1), torch.tensor([0.25])
    for power in (0, -26, -135):
        of = Affine(zero, torch.tensor([2.0**power]), zero, activation, True)
        on = Channels(x).affine(of, x.dtype) > 0
        got, want = (by.sums(grad, of, "squares") for by in (compiled(x), Channels(x)))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True) if a is not None)
        assert torch.equal(got.grad, (grad * on).sum(0))  # small integers: exact
        back = [by.grad_input(grad, of, offset, None, x.dtype) for by in (compiled(x), Channels(x))]
        assert torch.equal(*back)
        assert torch.equal(back[0] > 0.25, on) or power == -135  # lost beside the offset


@LAYOUTS
@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", [int8, uint8, IntFormat(16), IntFormat(4)], ids=str)
def test_codes_are_the_quantizers_of_the_output(
    source: torch.dtype, fmt: IntFormat, planes: bool
) -> None:
    rule = absmax if fmt.symmetric else minmax
    for shape in ((37, 5), (6, 8, 5, 3), (3, 4, 2, 3, 3)):
        x = gaussian(*shape, dtype=source, planes=planes)
        for relu in (True, False):
            for activation in (None, fp16, bf16):
                of = affine_of(x, activation, relu)
                y = Channels(x).affine(of, torch.float32)
                want = Quantizer(format=fmt, range=rule)(y)
                assert want.scale is not None
                got = codes_of(x, of, fmt)(want.scale, want.zero_point)
                assert got.dtype == fmt.dtype and got.stride() == x.stride()
                assert torch.equal(got, want.elements), (relu, activation)


def test_codes_of_a_tensor_of_zeros() -> None:
    x = torch.full((8, 3), -2.0)
    of = Affine(torch.zeros(3), torch.ones(3), torch.zeros(3), None, True)
    scale, zero = torch.zeros(1, 1), torch.full((1, 1), 7, dtype=torch.int32)
    assert torch.equal(
        codes_of(x, of, uint8)(scale, zero), torch.full((8, 3), 7, dtype=torch.uint8)
    )


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", [1, 3, 7, 40])
def test_extremes_are_the_first_of_equal_ones(
    dtype: torch.dtype, chunks: int, planes: bool
) -> None:
    """Few values, so that every chunk has several largest and smallest ones."""
    for shape in ((5, 4, 16), (7, 4, 43), (8, 4, 625), (2, 4, 9000)):
        x = (gaussian(*shape, planes=planes) * 2).round().clamp(-3, 3).to(dtype)
        rows = x.float().transpose(0, 1).flatten(1)
        mean = rows.mean(1)
        ours = compiled(x).sample(mean)
        assert ours.count == rows.shape[1]
        for cut in cuts(ours.count, chunks):
            found = ours.extremes(cut)
            for part in range(cut.number):
                first = cut.start + part * cut.length
                chunk = rows[:, first : first + cut.length]
                for high, at in ((found.high, found.high_at), (-found.low, found.low_at)):
                    values = chunk if high is found.high else -chunk
                    top = values.max(1, keepdim=True).values
                    assert torch.equal(high[:, part], top[:, 0])
                    assert torch.equal(at[:, part], first + (values == top).int().argmax(1))
        magnitudes = (rows - mean.unsqueeze(1)).abs()
        largest = ours.largest(1)
        top = magnitudes.max(1, keepdim=True).values
        assert torch.equal(largest[:, 0], magnitudes.argmax(1))  # torch's is the first as well
        assert torch.equal(largest[:, 0], (magnitudes == top).int().argmax(1))
        assert torch.equal(ours.take(largest), (rows - mean.unsqueeze(1)).gather(1, largest))


@LAYOUTS
def test_add_at_adds_where_torch_does_and_twice_where_an_index_repeats(planes: bool) -> None:
    grad = gaussian(6, 3, 4, 2, planes=planes)
    value = torch.tensor([[1.0, 2, 4], [8, 16, 32], [0.5, 0.25, 1]])
    index = torch.tensor([[0, 47, 0], [5, 6, 7], [13, 13, 13]])
    want = Channels(grad).add_at(grad.clone(), index, value)
    assert torch.equal(compiled(grad).add_at(grad, index, value), want)  # in place


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_relu_and_its_mask(dtype: torch.dtype, planes: bool) -> None:
    x, y = (
        gaussian(6, 8, 5, 3, dtype=dtype, planes=planes),
        gaussian(6, 8, 5, 3, dtype=dtype, seed=1, planes=planes),
    )
    x[0, 0], y[0, 0] = 1.0, -1.0  # a sum of 0 is off, as in torch
    x[1, 1, 0], x[1, 1, 1], y[1, 2, 0] = NAN, INF, -INF
    grad = gaussian(6, 8, 5, 3, dtype=dtype, seed=2, planes=planes)
    found = residual.add_relu(x, y)
    assert found is not None
    a, b = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, y))
    want = (a + b).relu()
    want.backward(grad)
    torch.testing.assert_close(found[0], want.detach(), rtol=0, atol=0, equal_nan=True)
    assert found[0].stride() == found[1].stride() == x.stride() and found[1].dtype == torch.bool
    back = residual.masked(grad, found[1])
    assert back is not None and a.grad is not None and torch.equal(back, a.grad)
    other = gaussian(6, 8, 5, 3, dtype=dtype, planes=not planes)
    assert residual.add_relu(other, y) is None  # of another layout, dtype or place: torch's
    assert residual.add_relu(x, y.double()) is None
    assert residual.add_relu(x[:, ::2], y[:, ::2]) is None
    assert residual.masked(other, found[1]) is None


# Awkward channels ---------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("deviation", DEVIATIONS[:6], ids=str)
def test_a_nonfinite_element_ends_in_its_channel_alone(
    deviation: Deviation, bad: float, planes: bool
) -> None:
    for carry in CARRIES:
        x = gaussian(150, 4, 2, planes=planes)
        grad = gaussian(150, 4, 2, seed=1, planes=planes)
        norm = norm_for(x, NormRecipe(deviation=deviation, statistics_gradient=carry))
        clean = results(norm, x, grad)
        x[3, 1, 1] = bad
        found = results(norm, x, grad)
        for name, t in found.items():
            rest, other = ((v.movedim(1, 0) if v.dim() > 1 else v) for v in (t, clean[name]))
            keep = [0, 2, 3]
            assert torch.equal(rest[keep], other[keep]), (name, carry)
            if name != "grad_bias":  # the sum of the gradient knows nothing of the input
                assert not rest[1].isfinite().any(), (name, carry)


@LAYOUTS
@pytest.mark.parametrize("deviation", DEVIATIONS[:6], ids=str)
def test_a_dead_channel_is_as_torchs_passes_make_it(deviation: Deviation, planes: bool) -> None:
    for carry in CARRIES:
        x, grad = gaussian(40, 4, 3, planes=planes), gaussian(40, 4, 3, seed=1, planes=planes)
        x[:, 1], x[:, 2] = 0.0, 0.3
        norm = norm_for(x, NormRecipe(deviation=deviation, statistics_gradient=carry))
        found, want = results(norm, x, grad), results(norm, x, grad, served=False)
        for name, t in found.items():
            assert t.isfinite().all()
            dead = t[:, 1] if t.dim() > 1 else t[1]
            expected = want[name][:, 1] if t.dim() > 1 else want[name][1]
            # divided by eps: relative to that size, 1e-5
            torch.testing.assert_close(dead, expected, rtol=1e-5, atol=1e-5)


def test_an_offset_a_thousand_times_the_deviation_costs_no_more_than_the_mean_does() -> None:
    x, grad = gaussian(64, 3, 8, 8), gaussian(64, 3, 8, 8, seed=1)
    x += 1000.0
    for deviation in DEVIATIONS:
        norm = norm_for(x, NormRecipe(deviation=deviation))
        found, want = results(norm, x, grad), defined(norm, x, grad).values
        # the mean itself is an fp32 number: off by half an ulp of 1000, 3e-5 of sigma, and the
        # order of torch's own sum
        torch.testing.assert_close(found["output"].double(), want["output"], rtol=0, atol=2e-3)
        torch.testing.assert_close(found["var"].double(), want["var"], rtol=1e-3, atol=0)


# Threads, layouts, other tensors ------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, planes: bool) -> None:
    shape = (9, 17, 19, 23)  # 3933 rows, 66861 elements: several threads, and rows to spare
    x = gaussian(*shape, dtype=dtype, planes=planes)
    grad = gaussian(*shape, dtype=dtype, seed=1, planes=planes)
    runs: list[list[Tensor]] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found: list[Tensor] = []
        for deviation in DEVIATIONS[:6]:
            for carry in CARRIES:
                recipe = NormRecipe(deviation=deviation, statistics_gradient=carry)
                norm = norm_for(x, recipe)
                found += results(norm, x, grad).values()
            found += results(norm, x, grad, relu=True).values()
        of = affine_of(x, OWN.get(dtype), True)
        found.append(codes_of(x, of, int8)(torch.tensor([0.1]), None))
        pair = residual.add_relu(x, grad)
        assert pair is not None
        back = residual.masked(grad, pair[1])
        assert back is not None
        runs.append([*found, *pair, back])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@LAYOUTS
def test_gradients_in_any_layout_and_dtype_are_the_same_gradient(planes: bool) -> None:
    x = gaussian(6, 8, 5, 3, planes=planes)
    grad = gaussian(6, 8, 5, 3, dtype=torch.bfloat16, seed=1, planes=planes).float()
    grad[:, :, 1:] = grad[:, :, :1]
    row = grad[:, :, :1].expand(-1, -1, 5, -1)
    storage = torch.empty(6, 8, 5, 6)[..., ::2].copy_(grad)
    grads = [
        grad,
        grad.contiguous(),
        grad.to(memory_format=torch.channels_last),
        row,
        storage,
        grad.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    grads += [grad.bfloat16()]
    for deviation, relu in ((range_(3), False), (l2(), True), (l1(), False)):
        norm = norm_for(x, NormRecipe(deviation=deviation))
        want = results(norm, x, grad, relu=relu)
        for other in grads:
            if other.dtype != torch.float32:  # as a function of user code hands one over
                found = _direct(norm, x, other, relu)
            else:
                found = results(norm, x, other, relu=relu)
            assert found["grad_input"].stride() == x.stride()
            for name in ("grad_input", "grad_weight", "grad_bias"):
                assert torch.equal(found[name], want[name]), (name, other.stride(), other.dtype)
        # the memory of this one holds other numbers: torch's passes, sums in another order
        found = results(norm, x, torch._neg_view(-grad), relu=relu)
        torch.testing.assert_close(found, want)
    one = torch.ones(()).expand(6, 8, 5, 3)
    norm = norm_for(x, NormRecipe(deviation=range_()))
    for t, other in zip(
        results(norm, x, one).values(), results(norm, x, one.clone()).values(), strict=True
    ):
        assert torch.equal(t, other)


def _direct(norm: Any, x: Tensor, grad: Tensor, relu: bool) -> dict[str, Tensor]:
    """The backward passes on a gradient that autograd would have cast."""
    recipe: NormRecipe = norm.recipe
    found = results(norm, x, grad.float(), relu=relu)
    with torch.no_grad():
        mean = x.mean(passes.others(x))
        sigma = recipe.deviation.of(compiled(x).sample(mean)).sigma
        divisor = recipe.deviation.stabilized(sigma, norm.eps)
        of = Affine(mean, norm.weight / divisor, norm.bias.clone(), None, relu)
        sums = compiled(x).sums(compiled(x).aligned(grad), of, None)
    assert torch.equal(sums.grad, found["grad_bias"])
    assert torch.equal(sums.product / divisor, found["grad_weight"])
    return found


def test_the_gradient_of_a_sum_and_of_many_outputs_at_once() -> None:
    x = gaussian(6, 3, 5, 4).requires_grad_()
    norm = norm_for(x, NormRecipe(deviation=range_(), statistics_gradient="l2"))
    output = norm(x)
    grads = torch.stack([gaussian(6, 3, 5, 4, seed=seed) for seed in (1, 2)])
    (many,) = torch.autograd.grad(output, x, grads, retain_graph=True, is_grads_batched=True)
    for one, grad in zip(many, grads, strict=True):
        (alone,) = torch.autograd.grad(output, x, grad, retain_graph=True)
        # under vmap torch's passes run: sums in another order
        torch.testing.assert_close(one, alone)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:, :, ::2],
        lambda x: x[:, 1:],
        lambda x: x[:1].expand(6, -1, -1, -1),
        lambda x: x.double(),
        lambda x: torch._neg_view(-x),
    ],
    ids=["transposed", "strided", "rows skipped", "channels skipped", "expanded", "fp64", "neg"],
)
def test_other_tensors_take_the_torch_passes(
    make: Callable[[Tensor], Tensor], kernel_passes: _Calls
) -> None:
    x = make(gaussian(6, 4, 6, 5))
    assert not channels(x).fused
    plain = x.clone(memory_format=torch.contiguous_format)
    grad = gaussian(*x.shape, seed=1).to(x.dtype)
    norm = norm_for(x, NormRecipe(deviation=range_(3))).to(x.dtype)
    leaf = x.detach().requires_grad_()
    output = norm(leaf)
    output.backward(grad)
    assert kernel_passes.count == 0
    assert leaf.grad is not None
    want = results(norm, plain, grad, served=False)
    torch.testing.assert_close(output.detach(), want["output"])
    torch.testing.assert_close(leaf.grad, want["grad_input"])


def test_eager_gives_the_torch_passes(kernel_passes: _Calls, torch_passes: _Calls) -> None:
    x, grad = gaussian(6, 4, 6, 5), gaussian(6, 4, 6, 5, seed=1)
    norm = norm_for(x, NormRecipe(deviation=range_()))
    results(norm, x, grad, served=False)
    assert kernel_passes.count == 0 and torch_passes.count == 5
    results(norm, x, grad)
    assert kernel_passes.count == 5 and torch_passes.count == 5


def test_a_kernel_that_cannot_be_had_leaves_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = gaussian(6, 4, 6, 5), gaussian(6, 4, 6, 5, seed=1)
    norm = norm_for(x, NormRecipe(deviation=range_()))
    want = results(norm, x, grad, served=False)
    for module in (norm_kernels, residual):
        monkeypatch.setattr(module, "made", lambda name, *numbers: None)
    assert not channels(x).fused and norm.fused_relu(x, False) is None
    assert residual.add_relu(x, x) is None and residual.masked(x, x > 0) is None
    found = results(norm, x, grad)
    assert all(torch.equal(found[name], t) for name, t in want.items())


#: a kernel that cannot be had: its maker, and which of its numbers it refuses
REFUSED: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "statistics": (compiled_statistics, "statistics", lambda kind, *_: kind < 4),
    "backward_sums": (compiled_statistics, "statistics", lambda kind, *_: kind >= 4),
    "normalize": (compiled_passes, "normalize", lambda *numbers: not numbers[4]),
    "codes": (compiled_passes, "normalize", lambda *numbers: bool(numbers[4])),
    "backward_input": (compiled_passes, "backward_input", lambda *_: True),
    "add_relu": (compiled_passes, "residual", lambda source, masked: not masked),
    "masked": (compiled_passes, "residual", lambda source, masked: bool(masked)),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes the compilation of one kernel fail."""

    def fail(name: str) -> None:
        file, maker, refuses = REFUSED[name]
        original = getattr(file, maker)

        def made(*numbers: int) -> Any:
            if refuses(*numbers):
                raise RuntimeError(f"no {name}")
            return original(*numbers)

        monkeypatch.setattr(file, maker, made)
        monkeypatch.setattr(serving, "_warned", [])
        kernels.made.cache_clear()

    yield fail
    kernels.made.cache_clear()


@LAYOUTS
@pytest.mark.parametrize("name", REFUSED)
def test_a_single_kernel_that_cannot_be_compiled_leaves_torchs_pass(
    name: str, planes: bool, uncompiled: Callable[[str], None]
) -> None:
    x, grad = gaussian(6, 4, 6, 5, planes=planes), gaussian(6, 4, 6, 5, seed=1, planes=planes)
    quantizer = Quantizer(format=uint8, range=minmax)
    uncompiled(name)
    with pytest.warns(RuntimeWarning, match=f"no {name}") as warned:
        for deviation in DEVIATIONS[:5]:
            norm = norm_for(x, NormRecipe(deviation=deviation))
            assert_near(results(norm, x, grad), defined(norm, x, grad), {})
            if name == "normalize":
                assert norm.fused_relu(x, True) is None
                continue
            assert_near(results(norm, x, grad, relu=True), defined(norm, x, grad, relu=True), {})
            assert_codes_of_the_output(getattr(norm.fused_relu(x, True), DEFERRED), quantizer)
        y, off = operations.add_relu(x, grad)
        assert torch.equal(y, (x + grad).relu()) and torch.equal(off, y <= 0)
        back = operations.masked(grad, off)
        assert torch.equal(back, grad * ~off) and back.stride() == off.stride()
    assert len(warned) == 1


def assert_codes_of_the_output(made: Deferred, quantizer: Quantizer) -> None:
    """Of a deferred output, what the quantizer makes of the output itself."""
    found = made.quantized(quantizer, None, True)
    want = quantizer(Channels(made.x).affine(made.of, torch.float32))
    assert found.format == want.format and found.block == want.block
    for a, b in zip(found[:3], want[:3], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b))
    assert found.elements.stride() == made.x.stride()


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("deviation", DEVIATIONS, ids=str)
def test_codes_of_a_deferred_output(deviation: Deviation, dtype: torch.dtype, planes: bool) -> None:
    """Its range is of the extremes that a deviation has found, or of others."""
    for shape in ((41, 3), (6, 8, 5, 3), (3, 4, 2, 3, 3)):
        x = gaussian(*shape, dtype=dtype, shift=0.3, planes=planes)
        norm = norm_for(x, NormRecipe(deviation=deviation))
        made = getattr(norm.fused_relu(x, True), DEFERRED)
        assert (made.ends is not None) == (deviation.name == "range")
        for quantizer in (Quantizer(format=uint8, range=minmax), Quantizer(format=int8)):
            assert_codes_of_the_output(made, quantizer)


@LAYOUTS
def test_evaluation_has_the_same_bits_with_and_without_the_kernels(
    kernel_passes: _Calls, planes: bool
) -> None:
    x = gaussian(6, 4, 6, 5, planes=planes)
    for activation in (None, fp16, bf16, e4m3):
        norm = norm_for(x, NormRecipe(deviation=range_(), activation=activation))
        norm(x)
        norm.eval()
        want = norm(x.requires_grad_()).detach()  # with a graph: torch's passes
        before = kernel_passes.count
        with torch.no_grad():
            assert torch.equal(norm(x.detach()), want)
        assert kernel_passes.count == before + 1
        x = x.detach()


def test_parameters_of_another_dtype_and_layout() -> None:
    x, grad = gaussian(40, 6, 3), gaussian(40, 6, 3, seed=1)
    norm = norm_for(x, NormRecipe(deviation=range_()))
    want = results(norm, x, grad)
    wide = torch.zeros(2, 6, 2)
    wide[0, :, 0], wide[1, :, 0] = norm.weight.detach(), norm.bias.detach()
    norm.weight, norm.bias = (nn.Parameter(row[:, 0]) for row in wide)
    assert norm.bias.stride() == (2,)
    found = results(norm, x, grad)
    assert all(torch.equal(found[name], t) for name, t in want.items())
    norm.half()  # scales in quarters are exact, shifts are not
    halved = results(norm, x, grad)
    assert halved["grad_weight"].dtype == halved["mean"].dtype == torch.float16
    torch.testing.assert_close(halved["output"], want["output"], rtol=0, atol=2.0**-11)


@pytest.mark.parametrize("width", [1, 16, 129, 50176])
def test_cuts_into_blocks_cover_every_element_once(width: int) -> None:
    for cut in (Cut(0, 1, 1), Cut(0, 1, 129), Cut(5, 3, 257), Cut(0, 40, 2), Cut(7, 1, 50000)):
        start, number, length = cut
        for planes in (False, True):
            starts, each, lanes = memory.in_blocks(planes, width, cut)
            assert 1 <= lanes <= (min(width, length, memory.LANES) if planes else 1)
            assert starts[0] == start and starts[-1] == start + number * length
            sizes = starts.diff()
            assert sizes.numel() == number * each
            assert (sizes > 0).all() and (sizes <= 128 * lanes).all()
            firsts = torch.arange(number) * length + start
            assert torch.equal(starts[:-1].view(number, each)[:, 0], firsts)
    assert Cut(0, 1, 129) == cuts(129, 1)[0]


def test_no_warning_and_no_copy_of_the_input_is_kept() -> None:
    x = gaussian(64, 8, 6, 6, dtype=torch.float16).requires_grad_()
    norm = norm_for(x, NormRecipe(deviation=range_(4)))
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        warnings.simplefilter("error")
        norm(x).sum().backward()
    assert sum(kept.values()) < 1.1 * x.numel() * 2  # x itself, and tensors of its channels


def test_round_trip_of_a_relu_with_an_activation_that_no_kernel_rounds_to() -> None:
    x = gaussian(6, 4, 6, 5)
    norm = norm_for(x, NormRecipe(deviation=range_(), activation=e4m3))
    assert norm.fused_relu(x, False) is None and norm.fused_relu(x, True) is None
    of = affine_of(x, e4m3, True)
    want = round_to(Channels(x).affine(of._replace(activation=None, relu=False), x.dtype), e4m3)
    assert torch.equal(compiled(x).affine(of, x.dtype), want.relu())
