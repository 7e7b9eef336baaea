"""Triton's norms: elements have the bits of torch's passes; sums, the rounding of fp64's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from norm_cases import (
    DTYPES,
    SHAPES,
    Launches,
    affine_of,
    gaussian,
    launched,
    on_this_device,
    per_channel,
)
from torch import Tensor, nn
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from qtrain import quantize
from qtrain.conversion.kinds import convert_norm_
from qtrain.layers.fused import norm_add_relu, norm_relu, norm_relu_layer
from qtrain.norms import normalize as by_torch
from qtrain.norms.deferred import DEFERRED, Deferred
from qtrain.norms.deviations import Deviation, l1, l2, linf, none, range_, topk
from qtrain.norms.kernels.gpu import launch, residual, whole
from qtrain.norms.normalize import Form, Normalized
from qtrain.norms.passes import Affine, Channels, Extra, Slope, others
from qtrain.norms.recipe import NormRecipe, StatisticsGradient
from qtrain.norms.samples import Sample, cuts
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    absmax,
    bf16,
    e4m3,
    fp16,
    int8,
    minmax,
    uint8,
)
from quantizers.devices.memory import eager

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OWN: dict[torch.dtype, FloatFormat] = {torch.float16: fp16, torch.bfloat16: bf16}
LAYOUTS = pytest.mark.parametrize("planes", [False, True], ids=["channels-last", "contiguous"])
WHOLE = [l2(), l2(times=4), l1(), range_(), range_(7), range_(3, "paper"), none()]
OTHERS = [linf(), topk(3)]
SUMMED = ("rows", "one channel", "aligned", "several tiles")
RESULTS = ("output", "mean", "sigma", "grad_input", "grad_weight", "grad_bias")
CARRIES: list[StatisticsGradient] = ["exact", "l2", "detached"]


@pytest.fixture(params=["channels-last", "contiguous", "contiguous, long parts"])
def planes(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The layout, with small tiles, of which a part may have several."""
    monkeypatch.setattr(launch, "TILE", 256)
    if "long" in request.param:
        monkeypatch.setattr(launch, "PROGRAMS", 6)
    launch.tiles.cache_clear()
    launch.parts.cache_clear()
    yield request.param != "channels-last"
    launch.tiles.cache_clear()
    launch.parts.cache_clear()


def laid_out(got: Tensor, x: Tensor) -> bool:
    """Whether it lies as x does."""
    strides = zip(got.stride(), x.stride(), x.shape, strict=True)
    return all(own == other or size == 1 for own, other, size in strides)


# Element by element -------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_affine(dtype: torch.dtype, shape: tuple[int, ...], planes: bool) -> None:
    x = gaussian(*shape, dtype=dtype, planes=planes)
    for relu in (False, True):
        for activation in (None, fp16, bf16, e4m3):
            of = affine_of(x, activation, relu)
            for target in (dtype, torch.float32):
                got = launched(x).affine(of, target)
                assert laid_out(got, x)
                with eager():
                    want = Channels(x).affine(of, target)
                # torch's relu makes 0 of -0 on some devices
                assert got.dtype == target and torch.equal(got, want), (relu, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_number_is_rounded(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    own = every.view(dtype) if dtype != torch.float32 else every.float() * 1.0003
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        own = torch.where(own.abs() < 2.0**-126, 0, own)  # the interpreter reads them as 0
    x = torch.stack([own, own.flip(0)], 1).to(DEVICE)
    one = torch.ones(2, device=DEVICE)
    for scale in (1.0, 1e-7, 3e3):  # subnormal, and overflowing, in fp16
        for activation in (None, fp16, bf16):
            of = Affine(0 * one, scale * one, 0 * one, activation, relu=scale == 1)
            got = launched(x).affine(of, torch.float32)
            with eager():
                want = Channels(x).affine(of, torch.float32)
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@LAYOUTS
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_input(dtype: torch.dtype, grad_dtype: torch.dtype, planes: bool) -> None:
    for shape in ((37, 5), (6, 8, 5, 3), (3, 4, 16, 8)):
        x = gaussian(*shape, dtype=dtype, planes=planes)
        grad = gaussian(*shape, dtype=grad_dtype, seed=1, planes=planes)
        x[0] = affine_of(x).mean.to(dtype).view(-1, *[1] * (x.dim() - 2))  # a sign may be 0
        offset, factor = per_channel(x, 0.1), per_channel(x, -0.3)
        for slope in (None, Slope(factor, "centered"), Slope(factor, "sign")):
            for activation, relu in ((None, False), (OWN.get(dtype), True)):
                of = affine_of(x, activation, relu)
                args = launched(x).aligned(grad), of, offset, slope
                got = launched(x).grad_input(*args, dtype)
                with eager():
                    want = Channels(x).grad_input(*args, dtype)
                assert laid_out(got, x) and same(got, want), (slope, relu)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_added_where_torch_adds_them(dtype: torch.dtype, planes: bool) -> None:
    """In the order of the indices, which may repeat."""
    x = gaussian(6, 3, 4, 2, dtype=dtype, planes=planes)
    grad = gaussian(6, 3, 4, 2, dtype=dtype, seed=1, planes=planes)
    index = torch.tensor([[0, 47, 0, 1], [5, 6, 7, 7], [13, 13, 13, 13]], device=DEVICE)
    value = torch.tensor([[1.0, 2e8, 4, 1], [8, 16, 3e8, 1], [3e8, 1, -3e8, 1]], device=DEVICE)
    of, offset = affine_of(x), per_channel(x, 0.1)
    with eager():
        plain = Channels(x).grad_input(grad, of, offset, None, torch.float32)
    flat = plain.cpu().transpose(0, 1).flatten(1)
    for j in range(4):  # one after the other
        flat = flat.scatter_add(1, index[:, j : j + 1].cpu(), value[:, j : j + 1].cpu())
        want = flat.unflatten(1, (6, 4, 2)).transpose(0, 1)
        if j == 1:
            two = index[:, :2].contiguous(), value[:, :2].contiguous()
            assert same(launched(x).grad_at(grad, of, offset, None, *two, dtype), want.to(dtype))
    got = launched(plain).add_at(plain.clone(), index, value)
    assert got.stride() == x.stride() and same(got, want)


def test_equal_places_of_two_programs_are_added_once() -> None:
    grad = torch.zeros(2, 400, device=DEVICE)  # one channel's carriers lie in two programs
    index = torch.ones(400, 3, dtype=torch.int64, device=DEVICE)
    got = launched(grad).add_at(grad.clone(), index, torch.ones(400, 3, device=DEVICE))
    assert got[1].tolist() == [3.0] * 400 and not got[0].any()


@LAYOUTS
@pytest.mark.parametrize("fmt", [int8, uint8, IntFormat(16), IntFormat(4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_and_images(dtype: torch.dtype, fmt: IntFormat, planes: bool) -> None:
    for shape in ((37, 5), (6, 8, 5, 3)):
        x = gaussian(*shape, dtype=dtype, planes=planes)
        flat = x.float().transpose(0, 1).flatten(1)
        ends = torch.stack([flat.argmax(1), flat.argmin(1), 0 * flat.argmin(1)], 1)
        for relu in (True, False):
            for activation in (None, fp16, bf16):
                of = affine_of(x, activation, relu)
                by = launched(x)
                with eager():
                    y = Channels(x).affine(of, torch.float32)
                    want = Quantizer(format=fmt, range=absmax if fmt.symmetric else minmax)(y)
                    images = Channels(x).images(of, None)
                codes = by.codes(of, fmt)
                assert want.scale is not None and codes is not None
                got = codes(want.scale, want.zero_point)
                assert got.stride() == x.stride() and same(got, want.elements), (relu, activation)
                assert all(torch.equal(by.images(of, known), images) for known in (None, ends))


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_residual_sum(dtype: torch.dtype, planes: bool) -> None:
    x, y, grad = (gaussian(6, 8, 5, 3, dtype=dtype, seed=n, planes=planes) for n in range(3))
    x[0, 0], y[0, 0] = 1.0, -1.0  # a sum of 0 is off
    x[1, 1, 0], x[1, 1, 1], y[1, 2, 0] = float("nan"), float("inf"), -float("inf")
    found = residual.add_relu(x, y)
    assert found is not None
    want = (x + y).relu()
    torch.testing.assert_close(found[0], want, rtol=0, atol=0, equal_nan=True)
    assert same(found[1], want <= 0) and found[1].stride() == x.stride()
    back = residual.masked(grad, found[1])
    assert back is not None and same(back, torch.where(want <= 0, 0, grad))
    other = gaussian(6, 8, 5, 3, dtype=dtype, planes=not planes)
    assert residual.add_relu(other, y) is None and residual.masked(other, found[1]) is None
    assert residual.add_relu(x, y.double()) is None
    assert residual.add_relu(x[:, ::2], y[:, ::2]) is None


# Sums and statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPES[name] for name in SUMMED], ids=SUMMED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_fp64s(dtype: torch.dtype, shape: tuple[int, ...], planes: bool) -> None:
    x, grad = (gaussian(*shape, dtype=dtype, seed=n, planes=planes) for n in range(2))
    cases: tuple[tuple[Extra, bool], ...] = ((None, True), ("squares", False), ("signs", True))
    for extra, relu in cases:
        of = affine_of(x, OWN.get(dtype) if relu else None, relu)
        with eager():
            y = Channels(x).affine(of, torch.float32)
        g = torch.where((y <= 0) & relu, 0.0, grad.float())
        centered = x.float() - of.mean.view(1, -1, *[1] * (x.dim() - 2))
        more = {"squares": centered.square(), "signs": centered.sign()}.get(str(extra))
        terms = g, g * centered, more
        for got, term in zip(launched(x).sums(grad, of, extra), terms, strict=True):
            assert (got is None) == (term is None)
            if got is not None and term is not None:
                near(got, term.double().sum(others(x)), term.double().abs().sum(others(x)))


def near(got: Tensor, want: Tensor, size: Tensor) -> None:
    """Rounded to fp32 once, after errors of fp64."""
    assert ((got.double() - want).abs() <= 2.0**-24 * want.abs() + 2.0**-45 * size).all()


@pytest.mark.parametrize(("dtype", "chunks"), [*zip(DTYPES, (1, 7, 40), strict=True)], ids=str)
def test_extremes_are_the_first_of_equal_ones(
    dtype: torch.dtype, chunks: int, planes: bool
) -> None:
    for shape in ((5, 4, 16), (7, 3, 43), (2, 2, 700)):
        x = (gaussian(*shape, planes=planes) * 2).round().clamp(-3, 3).to(dtype)
        rows = x.float().transpose(0, 1).flatten(1).cpu()
        mean = rows.mean(1)
        ours, theirs = launched(x).sample(mean.to(DEVICE)), Sample(rows)
        assert ours.count == theirs.count
        for cut in cuts(ours.count, chunks):
            for got, want in zip(ours.extremes(cut), theirs.extremes(cut), strict=True):
                assert torch.equal(got.cpu(), want)  # 0 equals -0
        largest = ours.largest(1)
        magnitudes = (rows - mean.unsqueeze(1)).abs()
        top = magnitudes.amax(1, keepdim=True)
        assert same(largest[:, 0], (magnitudes == top).int().argmax(1))
        assert same(ours.take(largest), (rows - mean.unsqueeze(1)).gather(1, largest.cpu()))
        made = whole.normalize(x, None, None, form(range_(chunks), dtype))
        assert made is not None
        known = range_(chunks).of(theirs)
        assert same(made.where, known.where) and same(made.slope, known.slope)


def form(deviation: Deviation, dtype: torch.dtype, **settings: Any) -> Form:
    settings = {"carry": "exact", "relu": False, "activation": None, **settings}
    return Form(deviation, eps=1e-5, dtype=dtype, **settings)


def both(
    x: Tensor, grad: Tensor, of: Form, affine: bool = True
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Forward and backward by the kernels, and by torch in fp64, from the same statistics."""
    weight, bias = (per_channel(x, 1.0), per_channel(x, -0.5)) if affine else (None, None)
    with on_this_device():
        made = by_torch_or_whole(x, weight, bias, of)
        grads = whole.gradients(x, weight, bias, made._replace(output=grad), of)
        if grads is None:
            grads = by_torch.gradients(x, weight, bias, made._replace(output=grad), of)
    with eager():
        wide = of._replace(dtype=torch.float64)
        want = by_torch.normalize(x.double(), weight, bias, wide)
        known = Normalized(grad.double(), want.mean, want.sigma, made.where, want.slope)
        back = by_torch.gradients(x.double(), weight, bias, known, wide)
    return (*made[:3], *grads), (*want[:3], *back)


def by_torch_or_whole(x: Tensor, weight: Any, bias: Any, of: Form) -> Normalized:
    made = whole.normalize(x, weight, bias, of)
    assert (made is None) == (of.deviation in OTHERS)
    return by_torch.normalize(x, weight, bias, of) if made is None else made


@pytest.mark.parametrize("deviation", WHOLE + OTHERS, ids=str)
def test_a_norm_is_fp64s(deviation: Deviation, planes: bool) -> None:
    cases: list[tuple[str, bool, StatisticsGradient]] = [
        ("rows", True, "l2"), ("rows", False, "exact"), ("one channel", False, "l2"),
        ("aligned", True, "detached"), ("several tiles", True, "exact"),
    ]  # fmt: skip
    for n, (name, centered, carry) in enumerate(cases):
        if deviation.name == "none" and carry == "l2":
            carry = "exact"
        x, grad = (gaussian(*SHAPES[name], seed=seed, planes=planes) for seed in range(2))
        of = form(deviation, x.dtype, carry=carry, relu=n % 2 == 0, centered=centered)
        got, want = both(x, grad, of, affine=n != 2)
        assert laid_out(got[0], x) and laid_out(got[3], x)
        for part, a, b in zip(RESULTS, got, want, strict=True):
            per = others(b) if b.dim() > 1 else [0]
            size = b.abs().amax(per, keepdim=True).clamp(min=1.0)
            assert ((a.double() - b).abs() <= 3e-6 * size).all(), (part, name, carry)
        if deviation not in OTHERS:
            near(got[1], want[1], x.double().abs().sum(others(x)))


@pytest.mark.parametrize("deviation", WHOLE + OTHERS, ids=str)
def test_a_norm_in_few_bits(deviation: Deviation) -> None:
    for dtype in DTYPES[1:]:
        x, grad = (gaussian(6, 4, 5, 3, dtype=dtype, seed=seed) for seed in range(2))
        got, want = both(x, grad, form(deviation, dtype, activation=OWN[dtype], relu=True))
        assert got[0].dtype == got[3].dtype == dtype
        for a, b in zip(got, want, strict=True):
            size = b.abs().amax()
            assert ((a.double() - b).abs() <= 2.0**-8 * size).all()


@LAYOUTS
@pytest.mark.parametrize("deviation", WHOLE, ids=str)
def test_a_constant_channel_is_its_mean(deviation: Deviation, planes: bool) -> None:
    """Exactly: its output is the shift, and its extremes are its first element."""
    for value in (0.0, 0.3, -1e30):
        x = gaussian(9, 3, 17, 19, planes=planes)
        x[:, 1] = value
        made = whole.normalize(x, None, per_channel(x, -0.5), form(deviation, x.dtype))
        assert made is not None and made.mean[1] == x[0, 1, 0, 0]
        assert made.sigma[1] == (1.0 if deviation.name == "none" else 0.0)
        assert (made.output[:, 1] == per_channel(x, -0.5)[1]).all()
        grads = whole.gradients(
            x, None, None, made._replace(output=torch.ones_like(x)), form(deviation, x.dtype)
        )
        assert grads is not None and all(grad.isfinite().all() for grad in grads)


@LAYOUTS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("deviation", WHOLE + OTHERS, ids=str)
def test_a_nonfinite_element_ends_in_its_channel(
    deviation: Deviation, bad: float, planes: bool
) -> None:
    for carry in CARRIES[: 1 if deviation.name == "none" else 3]:
        x, grad = (gaussian(50, 4, 2, seed=seed, planes=planes) for seed in range(2))
        of = form(deviation, x.dtype, carry=carry)
        clean, _ = both(x, grad, of)
        x[3, 1, 1] = bad
        found, _ = both(x, grad, of)
        for n, (a, b) in enumerate(zip(found, clean, strict=True)):
            rest, other = ((v.movedim(1, 0) if v.dim() > 1 else v) for v in (a, b))
            keep = [0, 2, 3]
            assert torch.equal(rest[keep], other[keep])
            if n < 5 and not (n in (2, 3) and deviation.name == "none"):
                assert not rest[1].isfinite().any(), (n, carry)


def test_an_offset_costs_no_more_than_the_mean_does() -> None:
    x, grad = (gaussian(64, 3, 4, 4, seed=seed) for seed in range(2))
    x += 1000.0
    for deviation in WHOLE:
        got, want = both(x, grad, form(deviation, x.dtype))
        torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=2e-3)
        torch.testing.assert_close(got[2].double(), want[2], rtol=1e-6, atol=1e-6)


def test_one_outlier_first_costs_l2_nothing() -> None:
    """Its sums are about each channel's first element."""
    x = gaussian(2000, 3)
    x[0] = torch.tensor([1e6, -1e4, 1e15])
    made = whole.normalize(x, None, None, form(l2(), x.dtype))
    assert made is not None
    want = (x.double() - made.mean.double()).square().mean(0).sqrt()
    torch.testing.assert_close(made.sigma.double(), want, rtol=2e-7, atol=0)


# Modules ------------------------------------------------------------------------------------------


def module_for(x: Tensor, recipe: NormRecipe, **settings: Any) -> Any:
    norm = nn.BatchNorm2d(x.shape[1], **settings)
    convert_norm_(norm, recipe)
    return norm.to(x.device)


#: launches forward and backward, of a norm, of one with its ReLU
@pytest.mark.parametrize(
    ("deviation", "most"), [(range_(), 9), (range_(7), 10), (l2(), 9), (l1(), 11), (none(), 9)],
    ids=str,
)  # fmt: skip
def test_launches(deviation: Deviation, most: int) -> None:
    x, grad = (gaussian(6, 8, 5, 3, seed=seed) for seed in range(2))
    for relu in (False, True):
        norm = module_for(x, NormRecipe(deviation=deviation))
        leaf = x.clone().requires_grad_()
        with on_this_device(), Launches() as counted:
            output = norm.fused_relu(leaf, False) if relu else norm(leaf)
            output.backward(grad)
        assert len(counted.names) <= most, " ".join(counted.names)
        other = module_for(x, NormRecipe(deviation=deviation))
        twin = x.clone().requires_grad_()
        with eager():
            want = other(twin)
            (want.relu() if relu else want).backward(grad)
        assert leaf.grad is not None and twin.grad is not None
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-5, atol=2e-6)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics(momentum: float | None) -> None:
    x = gaussian(6, 8, 5, 3)
    norm, other = (module_for(x, NormRecipe(deviation=l2()), momentum=momentum) for _ in range(2))
    for step in range(3):
        with on_this_device():
            norm(x * (step + 1))
        with eager():
            other(x * (step + 1))
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=5e-7, atol=1e-7)


@LAYOUTS
@pytest.mark.parametrize("deviation", [l2(), l1(), range_(), range_(7), linf()], ids=str)
def test_codes_of_a_deferred_output(deviation: Deviation, planes: bool) -> None:
    for dtype in DTYPES[planes:]:
        x = gaussian(6, 8, 5, 3, dtype=dtype, planes=planes)
        norm = module_for(x, NormRecipe(deviation=deviation))
        with on_this_device():
            output = norm.fused_relu(x, True)
            assert output.dtype == dtype and output.shape == x.shape and output.isnan().all()
            made: Deferred = getattr(output, DEFERRED)
            assert (made.ends is None) == (deviation.name == "linf")
            for quantizer in (Quantizer(format=uint8, range=minmax), Quantizer(format=int8)):
                found = made.quantized(quantizer, None, True)
                with eager():
                    want = quantizer(Channels(x).affine(made.of, torch.float32))
                assert found.format == want.format and found.block == want.block
                assert all(same(a, b) for a, b in zip(found[:3], want[:3], strict=True))
                assert found.elements.stride() == x.stride()


ROWS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "LayerNorm": (lambda: nn.LayerNorm(33), (4, 7, 33)),
    "RMSNorm": (lambda: nn.RMSNorm(64), (5, 64)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), (2, 6, 5, 3)),
}


@pytest.mark.parametrize("deviation", [range_(), range_(2), l2(times=2), l1()], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_norms_of_rows(name: str, deviation: Deviation) -> None:
    make, shape = ROWS[name]
    norm: Any = make()
    convert_norm_(norm, NormRecipe(deviation=deviation))
    norm = norm.to(DEVICE)
    x, grad = (gaussian(*shape, seed=seed, planes=True).requires_grad_() for seed in range(2))
    with on_this_device(), Launches() as counted:
        output = norm(x)
        got = torch.autograd.grad(output, [x, *norm.parameters()], grad.detach())
    assert counted.names.count("moments") == 1 and "mean" not in counted.names
    with eager():
        want = norm(x)
        back = torch.autograd.grad(want, [x, *norm.parameters()], grad.detach())
    for a, b in zip((output, *got), (want, *back), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Residual(nn.Module):
    """Every one of the fused functions once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0, self.relu0 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.norm2, self.relu2 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(norm_relu(self.norm0, self.relu0, self.conv0(x)))
        z = norm_relu_layer(self.norm1, self.relu1, self.conv2, y)
        return norm_add_relu(self.norm2, self.relu2, z, y)


@pytest.mark.parametrize("norm", ["range", "l1"])
def test_a_network_trains_as_by_torch(norm: str) -> None:
    torch.manual_seed(0)
    model: Any = Residual()
    model = quantize(model.to(memory_format=torch.channels_last), recipe="int8", norm=norm).to(
        DEVICE
    )
    other = copy.deepcopy(model)
    x = gaussian(4, 3, 9, 9)
    with on_this_device(), Launches() as counted:
        output = model(x)
        output.backward(torch.ones_like(output))
    for name, number in (("moments", 3), ("images", 1), ("normalize", 3), ("residual", 2)):
        assert counted.names.count(name) == number, (name, counted.names)
    with eager():
        want = other(x)
        want.backward(torch.ones_like(want))
    pairs = [
        (output, want),
        *((a.grad, b.grad) for a, b in zip(*map(parameters, (model, other)), strict=True)),
    ]
    for a, b in pairs:  # a last bit of a norm may move a code
        assert a is not None and b is not None
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-3


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def test_what_no_kernel_serves_is_declined() -> None:
    x = gaussian(6, 4, 6, 5)
    odd = [x.double(), x.transpose(2, 3), x[:, :, ::2], x[:1].expand(6, -1, -1, -1)]
    for other in (*odd, torch._neg_view(-x)):
        assert whole.normalize(other, None, None, form(range_(), other.dtype)) is None
    assert whole.normalize(x, None, None, form(linf(), x.dtype)) is None
    with eager():
        assert whole.normalize(x, None, None, form(range_(), x.dtype)) is None
