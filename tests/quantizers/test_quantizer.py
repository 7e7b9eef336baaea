"""Quantizers against the reference, and the facts that training relies on."""

import itertools
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quantizer_checks import compiled, needs_cuda, same_bits
from torch import Tensor

from quantizers import (
    OFF,
    FloatFormat,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    absmax,
    blocks,
    ceil,
    chunked_minmax,
    ema,
    floor,
    formats,
    half_away,
    int8,
    kernels,
    minmax,
    nearest_even,
    per_axis,
    per_sample,
    per_tensor,
    percentile,
    random_bits,
    root_key,
    round_to,
    stochastic,
    toward_zero,
    uint8,
)
from quantizers.protocol import needs_key, straight_through
from quantizers.ranges.running import Ema

#: scales and roundings are tried together at random
pytestmark = pytest.mark.filterwarnings("ignore::quantizers.ClippingScaleWarning")
KEY = root_key(1)
NAN, INF = float("nan"), float("inf")
RULES = {absmax: reference.absmax, minmax: reference.minmax}
INTS = [IntFormat(b, s, y) for b in (2, 4, 8, 16) for s in (True, False) for y in (True, False)]
FLOATS = [formats.e4m3, formats.e5m2, formats.e2m1, formats.e3m0, formats.fp16]
UNSIGNED = FloatFormat(4, 4, signed=False)
GRAINS = [
    per_tensor,
    per_axis(0),
    blocks(3),
    Granularity(((-1, 2), (0, 2)), rest="each"),
    Granularity(((0, 32),), rest="each"),
]
MODES_OF_SCALES = [nearest_even, ceil, floor]
QUANTIZERS = st.builds(
    Quantizer,
    format=st.sampled_from(INTS + FLOATS),
    granularity=st.sampled_from(GRAINS),
    range=st.sampled_from(list(RULES)),
    scale=st.sampled_from(
        [Scale()]
        + [Scale(fmt, rounding=r) for fmt in (formats.e8m0, formats.e4m3) for r in MODES_OF_SCALES]
    ),
    rounding=st.sampled_from(
        [nearest_even, half_away, toward_zero, floor, ceil, stochastic(23), stochastic(3)]
    ),
)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3)
USUAL = st.one_of(
    st.floats(-8, 8, width=16), st.floats(-100, 100, width=32), st.sampled_from([0.0, -0.0, 0.5])
)
ANY = st.one_of(USUAL, st.floats(width=32))


@st.composite
def tensors(draw: st.DrawFn, elements: st.SearchStrategy[float] = ANY) -> Tensor:
    """Any float dtype and shape (empty ones too), contiguous or transposed."""
    shape = draw(SHAPES)
    count = torch.Size(shape).numel()
    values = draw(st.lists(elements, min_size=count, max_size=count))
    x = torch.tensor(values, dtype=torch.float64).to(draw(DTYPES)).view(shape)
    return x.transpose(0, -1).contiguous().transpose(0, -1) if draw(st.booleans()) else x


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random_bits(root_key(seed), shape).float() / 2**29


def check_against_reference(quantizer: Quantizer, x: Tensor) -> None:
    grain = quantizer.granularity
    result = quantizer(x, key=KEY)
    sizes = reference.block_sizes(grain.sizes, grain.rest, x.shape)
    elements, values = reference.quantize(
        x,
        quantizer.format,
        RULES[quantizer.range],
        sizes,
        scale_format=None if quantizer.scale == Scale() else quantizer.scale.format,
        scale_mode=quantizer.scale.rounding.mode,
        mode=quantizer.rounding.mode,
        random=quantizer.rounding.random_bits,
        key=KEY.item() % 2**64,
    )
    assert result.elements.shape == x.shape and list(result.block) == sizes
    assert result.scale is not None and result.scale.dtype == torch.float32
    got = result.dequantize()
    whole = isinstance(quantizer.format, IntFormat)
    assert got.dtype == (torch.float64 if x.dtype == torch.float64 and not whole else torch.float32)
    finite = torch.isfinite(values)
    # a block whose scale is not finite has no finite value left
    assert torch.equal(torch.isfinite(got), finite)
    chosen = result.elements[finite].double()
    assert torch.equal(chosen, elements[finite])
    assert torch.equal(got[finite].double(), values[finite])
    if not whole:
        assert torch.equal(torch.signbit(chosen), torch.signbit(elements[finite]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(QUANTIZERS, tensors())
def test_quantizers_equal_the_reference(quantizer: Quantizer, x: Tensor) -> None:
    assume(x.dim() > 1 or len(quantizer.granularity.sizes) < 2)  # a 2-d block needs two axes
    check_against_reference(quantizer, x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(QUANTIZERS, tensors(USUAL))
def test_usual_numbers_equal_the_reference(quantizer: Quantizer, x: Tensor) -> None:
    assume(x.dim() > 1 or len(quantizer.granularity.sizes) < 2)
    check_against_reference(quantizer, x)


@pytest.mark.parametrize("fmt", [int8, uint8, formats.e4m3, formats.e2m1], ids=str)
@pytest.mark.parametrize(
    "grain",
    [
        blocks(32),
        Granularity(((0, 16), (1, 16)), rest="each"),
        Granularity(((0, 32), (1, 32)), rest="each"),
        Granularity(((1, 32),)),
        per_sample,
    ],
    ids=str,
)
def test_blocks_with_ragged_tails_equal_the_reference(fmt, grain) -> None:
    for shape in ((32, 64), (33, 47), (3, 70), (40, 5)):
        x = numbers(*shape) * torch.arange(1, shape[1] + 1)
        check_against_reference(Quantizer(format=fmt, granularity=grain, range=minmax), x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([*FLOATS, formats.bf16, formats.e8m0]), tensors(), st.sampled_from([1, 2, 3])
)
def test_without_a_range_elements_are_x_rounded(fmt: FloatFormat, x: Tensor, kind: int) -> None:
    mode = {1: nearest_even, 2: toward_zero, 3: stochastic(8)}[kind]
    result = Quantizer(format=fmt, range=None, rounding=mode)(x, key=KEY)
    assert result.scale is None and result.zero_point is None
    expected = []
    for index, value in enumerate(x.flatten().tolist()):
        draw = ((reference.random_bits(KEY.item() % 2**64, index) >> 24) + 0.5) / 256
        expected.append(reference.round_float(value, fmt, mode.mode, draw))
    slow = torch.tensor(expected, dtype=torch.float64).view(x.shape).to(result.elements.dtype)
    assert same_bits(result.dequantize(), slow)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(FLOATS + INTS), st.sampled_from(GRAINS), tensors(USUAL))
def test_quantizing_twice_changes_nothing_with_power_of_two_scales(fmt, grain, x: Tensor) -> None:
    # fp32 scales: the second range differs in its last bit; powers of two are exact
    quantizer = Quantizer(
        format=fmt,
        granularity=grain,
        range=minmax,
        scale=Scale(formats.e8m0, rounding=ceil),
        rounding=toward_zero,
    )
    assume(x.dim() > 1 or len(grain.sizes) < 2)
    first = quantizer(x)
    again = replace(quantizer, rounding=stochastic())
    scale = first.spread(first.scale)
    elements = first.unshifted().double()
    exact = elements * scale.double()
    assert torch.equal(first.dequantize().double(), exact)
    # the same scale, imposed: each value is a fixed point of every rounding, stochastic included
    if isinstance(fmt, FloatFormat) and fmt.bits <= 16:
        plain = Quantizer(format=fmt, range=None, rounding=again.rounding)
        assert torch.equal(plain(elements, key=KEY).elements, elements)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(INTS + FLOATS), st.lists(USUAL, min_size=1, max_size=30))
def test_quantization_is_monotonic(fmt, values: list) -> None:
    x = torch.tensor(sorted(values))
    for mode in (nearest_even, half_away, toward_zero, floor, ceil):
        y = Quantizer(format=fmt, range=minmax, rounding=mode)(x).dequantize()
        assert bool((y[1:] >= y[:-1]).all()), mode


def test_quantizing_the_grid_returns_the_grid() -> None:
    for fmt in (int8, IntFormat(4), IntFormat(16), formats.e4m3, formats.e2m1):
        grid = (fmt.codes() if isinstance(fmt, IntFormat) else fmt.decode(fmt.codes())).float()
        grid = grid[torch.isfinite(grid)]
        for exponent in (-20, 0, 9):
            result = Quantizer(format=fmt)(grid * 2.0**exponent)
            assert torch.equal(result.elements.float(), grid)
            assert result.scale.item() == 2.0**exponent


def test_ties_go_where_the_rounding_says() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, 127.0])
    for mode, expected in (
        (nearest_even, [0, 2, 0, -2, 2]),
        (half_away, [1, 2, -1, -2, 3]),
        (toward_zero, [0, 1, 0, -1, 2]),
        (floor, [0, 1, -1, -2, 2]),
        (ceil, [1, 2, 0, -1, 3]),
    ):
        assert Quantizer(format=int8, rounding=mode)(x).elements[:5].tolist() == expected


@pytest.mark.parametrize("mode", [nearest_even, stochastic()], ids=str)
@pytest.mark.parametrize("fmt", [*INTS, *FLOATS], ids=repr)
def test_exact_zeros_stay_exact_zeros(fmt, mode) -> None:
    x = numbers(6, 50) + torch.tensor([[0.0], [3.0], [-3.0], [9.0], [0.1], [-9.0]])
    x[:, ::3] = 0.0
    x[:, 3] = -0.0
    for grain in (per_tensor, per_axis(0)):
        result = Quantizer(format=fmt, granularity=grain, range=minmax, rounding=mode)(x, key=KEY)
        assert bool((result.dequantize()[:, ::3] == 0).all())


@pytest.mark.parametrize("scale_format", [formats.fp32, formats.e8m0, formats.e4m3], ids=str)
@pytest.mark.parametrize("fmt", [int8, uint8, IntFormat(4, False), formats.e4m3], ids=str)
def test_a_zero_range_gives_scale_0_and_zeros(fmt, scale_format) -> None:
    x = torch.cat([torch.zeros(1, 4), torch.ones(1, 4)])
    quantizer = Quantizer(format=fmt, granularity=per_axis(0), scale=Scale(scale_format))
    result = quantizer(x)
    assert result.scale[0].item() == 0 and result.scale[1].item() > 0
    assert bool((result.unshifted()[0] == 0).all()) and bool((result.dequantize()[0] == 0).all())
    if fmt is not uint8:
        assert bool((result.elements[0] == 0).all())


@pytest.mark.parametrize("served", [nullcontext, kernels.eager], ids=["fused", "eager"])
@pytest.mark.parametrize("low", [-0.0, 0.0, -1e-45, -3.0])
def test_a_scale_of_0_is_plus_0(low: float, served) -> None:
    """Also where the largest element is -0.0, and is what an unsigned format is spread up to."""
    x = torch.tensor([-0.0, low]).repeat(3, 4)
    grains, rules = (per_tensor, per_axis(0), blocks(8)), (minmax, absmax, chunked_minmax(2), ema())
    formats_ = (IntFormat(b, s, y) for b in (4, 16) for s in (True, False) for y in (True, False))
    for fmt in (*formats_, formats.e4m3, UNSIGNED):
        for grain, rule in itertools.product(grains, rules):
            if isinstance(rule, Ema) and grain != per_tensor:
                continue
            by = Quantizer(format=fmt, granularity=grain, range=rule)
            with served():
                scale = by(x, state=by.init_state(x.shape)).scale
            assert not scale.signbit().any(), by


def test_a_scale_of_0_gives_zeros_also_for_elements_that_are_not_zero() -> None:
    outlier = torch.tensor([0.0] * 9 + [5.0])  # the quantiles see zeros only
    tiny = torch.tensor([0.3, -0.2])  # 0.3 / 448 underflows in e4m3
    cases = [(outlier, {"range": percentile(0.6)}), (tiny, {"scale": Scale(formats.e4m3)})]
    for x, options in cases:
        result = Quantizer(format=formats.e4m3, **options)(x)
        assert result.scale.item() == 0
        assert bool((result.elements == 0).all())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("fmt", [*INTS, *FLOATS], ids=repr)
def test_a_nonfinite_element_poisons_its_own_block_only(fmt, bad: float) -> None:
    x = numbers(3, 8)
    x[1, 2] = bad
    for rule in (absmax, minmax, percentile(0.9)):
        result = Quantizer(format=fmt, granularity=per_axis(0), range=rule)(x)
        assert torch.isfinite(result.scale).flatten().tolist() == [True, False, True]
        finite = torch.isfinite(result.dequantize())
        assert not bool(finite[1].any()) and bool(finite[0].all() and finite[2].all())


def test_the_clamp_catches_absmax_over_its_own_scale() -> None:
    x = numbers(20000, 1).abs()
    ratio = x / (x / 127)
    assert 0.1 < (ratio > 127).float().mean().item() < 0.2  # half of the 31 % that miss 127
    for fmt in (int8, IntFormat(4), IntFormat(16)):
        for mode in (nearest_even, ceil, stochastic()):
            quantizer = Quantizer(format=fmt, granularity=per_axis(0), rounding=mode)
            elements = quantizer(torch.cat([x, -x], 1), key=KEY).elements
            assert elements.max().item() <= fmt.high and elements.min().item() >= -fmt.high
            if mode is nearest_even:
                assert bool((elements[:, 0] == fmt.high).all())


def test_minus_128_is_never_produced_by_symmetric_and_is_by_affine() -> None:
    x = torch.cat([-torch.linspace(0, 1000, 3001), torch.tensor([3.0])])
    for rule in (absmax, minmax, percentile(0.6)):
        assert Quantizer(format=int8, range=rule, rounding=floor)(x).elements.min() == -127
    affine = IntFormat(8, symmetric=False)
    assert Quantizer(format=affine, range=minmax)(x).elements.min() == -128


def test_affine_uses_both_ends_and_holds_zero_exactly() -> None:
    result = Quantizer(format=uint8, range=minmax)(torch.tensor([-1.0, 0.0, 4.0]))
    assert result.elements.tolist() == [0, 51, 255] and result.zero_point.item() == 51
    assert result.scale.item() == torch.tensor(5.0).div(255).item()
    one_sided = Quantizer(format=uint8, range=minmax)(torch.tensor([3.0, 4.0]))
    assert one_sided.zero_point.item() == 0 and one_sided.elements.tolist() == [191, 255]
    negative = Quantizer(format=uint8, range=minmax)(torch.tensor([-3.0, -4.0]))
    assert negative.zero_point.item() == 255 and negative.elements.tolist() == [64, 0]


@pytest.mark.parametrize(
    ("mode", "expected"), [(ceil, 0.0625), (floor, 0.03125), (nearest_even, 0.03125)], ids=str
)
def test_power_of_two_scales_round_up_down_and_nearest(mode, expected: float) -> None:
    quantizer = Quantizer(format=int8, scale=Scale(formats.e8m0, rounding=mode))
    result = quantizer(torch.tensor([5.0, -1.0]))  # 5 / 127 = 0.0394, between 2^-5 and 2^-4
    assert result.scale.item() == expected
    assert result.elements[0].item() == min(round(5 / expected), 127)
    for exponent in range(-60, 60):
        scales = quantizer(torch.tensor([127.0 * 2.0**exponent])).scale
        assert scales.item() == 2.0**exponent


def test_e4m3_scales_saturate_and_underflow_as_the_format_says() -> None:
    quantizer = Quantizer(format=int8, scale=Scale(formats.e4m3), granularity=per_axis(0))
    result = quantizer(torch.tensor([[127.0 * 3.1], [127.0 * 1e4], [1e-3]]))
    assert result.scale.flatten().tolist() == [3.0, 448.0, 0.0]
    assert result.elements.flatten().tolist() == [127, 127, 0]


def test_a_clipping_range_saturates_floats_unless_the_format_states_its_overflow() -> None:
    x = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([50.0, -50.0])])
    for fmt in (formats.e5m2, formats.fp16, formats.e4m3):
        for options in ({"range": percentile(0.9)}, {"scale": Scale(formats.e8m0, rounding=floor)}):
            quantizer = Quantizer(format=fmt, **{"scale": Scale(formats.e8m0), **options})
            elements = quantizer(x).elements
            assert elements[-2:].tolist() == [fmt.largest, -fmt.largest]
    stated = replace(formats.e5m2, overflow="inf")
    assert Quantizer(format=stated, range=percentile(0.9))(x).elements[-2:].tolist() == [INF, -INF]


CLIPPED = [
    *FLOATS,
    FloatFormat(6, 3, name="e6m3"),
    FloatFormat(4, 4, signed=False, name="unsigned"),
    FloatFormat(4, 3, signed=False, specials="finite", name="unsigned finite"),
    FloatFormat(4, 3, specials="fn", overflow="nan", name="e4m3 to nan"),
    replace(formats.e5m2, overflow="inf"),
]


@pytest.mark.parametrize("served", [nullcontext, kernels.eager], ids=["fused", "eager"])
@pytest.mark.parametrize("fmt", [*CLIPPED, *INTS], ids=repr)
def test_a_finite_value_beyond_a_range_follows_the_overflow_rule(fmt, served) -> None:
    """However far beyond: x / scale passes fp32, or fp64, itself."""
    ends = {"low": torch.tensor([-1e-30]), "high": torch.tensor([1e-30])}
    state = {**ends, "share": torch.tensor(1.0), "steps": torch.tensor(1)}
    rule = fmt.overflow if isinstance(fmt, FloatFormat) else None
    most = {"inf": INF, "nan": NAN}.get(rule, fmt.largest)
    least = -most if fmt.signed else 0.0
    least = fmt.low if isinstance(fmt, IntFormat) else least
    for dtype, size in ((torch.float32, 1e30), (torch.float64, 1e300), (torch.bfloat16, 1e30)):
        x = numbers(40).to(dtype) * size
        expected = torch.full(x.shape, least, dtype=torch.float64).masked_fill_(x > 0, most)
        for mode, range_, grain in itertools.product(
            (nearest_even, stochastic(), ceil),
            (ema(), ema(absmax), _Fixed(1e-30)),
            (per_tensor, per_axis(0), blocks(7)),
        ):
            memory = isinstance(range_, Ema)
            if memory and (grain != per_tensor or dtype == torch.float64):
                continue  # beyond fp32 a range is not finite
            quantizer = Quantizer(format=fmt, granularity=grain, range=range_, rounding=mode)
            kept = state if memory else None
            with served():
                q = quantizer(x, key=KEY, state=kept, training=False)
                bad = quantizer(x.index_fill(0, torch.tensor(3), INF), key=KEY, state=kept,
                                training=False)  # fmt: skip
            assert torch.equal(q.elements.double().nan_to_num(7.25), expected.nan_to_num(7.25))
            assert not memory or not bool(torch.isfinite(bad.dequantize()).any())


@pytest.mark.parametrize(
    "fmt", [*INTS, formats.e4m3, FloatFormat(3, 2, bias=12, name="small")], ids=repr
)
def test_the_ends_of_fp32_are_quantized_within_a_step(fmt) -> None:
    most = torch.finfo(torch.float32).max
    for ends in ((-most, most), (-2e38, 3e38), (-3e38, 1e30), (0.0, most), (-most, 0.0)):
        x = torch.cat([torch.tensor(ends), numbers(30).clamp(-1, 1) * 1e38])
        for served in (nullcontext, kernels.eager):
            for rule in (minmax, absmax, percentile(0.99), chunked_minmax(2), ema(momentum=0.9)):
                quantizer = Quantizer(format=fmt, range=rule)
                state = quantizer.init_state(x.shape)
                with served():
                    quantizer(-x.flip(0), state=state)
                    q = quantizer(x, state=state)
                assert torch.isfinite(q.scale) and torch.isfinite(q.dequantize()).all(), rule
                if rule in (minmax, absmax) and isinstance(fmt, IntFormat) and fmt.signed:
                    step = q.scale.double()
                    assert ((q.dequantize().double() - x).abs() <= step * 1.001).all()


@dataclass(frozen=True)
class _Fixed:
    """A range of a user's own."""

    bound: float

    def init_state(self, compact: tuple) -> dict:
        return {}

    def __call__(self, x: Tensor, block, *, state=None, training=True) -> tuple:
        _, high = absmax(x, block)
        high = torch.full_like(high, self.bound)
        return -high, high


def test_layouts_dtypes_and_scalars() -> None:
    x = numbers(2, 6, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for grain in (
        per_tensor,
        per_axis(1),
        Granularity(((1, 4),), rest="each"),
        Granularity(((1, 4), (3, 2)), rest="each"),
    ):
        for fmt in (int8, uint8, formats.e4m3):
            quantizer = Quantizer(format=fmt, granularity=grain, range=minmax)
            a, b = quantizer(x), quantizer(last)
            expanded = quantizer(x[:1].expand(2, -1, -1, -1))
            assert same_bits(a.elements, b.elements) and same_bits(a.dequantize(), b.dequantize())
            assert same_bits(expanded.elements, quantizer(x[:1].repeat(2, 1, 1, 1)).elements)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        assert same_bits(Quantizer(format=int8)(half).elements, quantizer_of(half.float()))
    for fmt in (int8, uint8, formats.e4m3):
        for dtype in (torch.float32, torch.float64, torch.float16):
            scalar = Quantizer(format=fmt, range=minmax)(torch.tensor(-3.0, dtype=dtype))
            assert scalar.elements.shape == () and scalar.scale.shape == ()
            assert scalar.dequantize().item() == pytest.approx(-3.0, rel=1e-6)


def quantizer_of(x: Tensor) -> Tensor:
    return Quantizer(format=int8)(x).elements


def test_off_is_the_tensor_itself() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = numbers(3, 4).to(dtype)
        result = OFF(x)
        assert result.elements is x and result.dequantize() is x
        assert result.scale is None and result.format is None
    assert not needs_key(OFF) and straight_through(OFF)


@pytest.mark.parametrize(
    ("mode", "symmetric", "affine"),
    [
        ("identity", [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ("inclusive", [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]),
        ("strict", [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]),
    ],
)
def test_straight_through_masks(mode: str, symmetric: list, affine: list) -> None:
    grad = torch.arange(1.0, 6.0)
    memory = Quantizer(format=int8, range=ema(), straight_through=mode)
    state = memory.init_state((None,))
    memory(torch.tensor([-127.0, 127.0]), state=state)  # scale 1
    x = torch.tensor([-127.5, -127.0, 3.3, 127.0, 127.5])
    assert memory.backward(grad, x, state).tolist() == [
        g * m for g, m in zip(grad.tolist(), symmetric, strict=True)
    ]
    assert state["steps"] == 1  # backward does not move the average
    shifted = replace(memory, format=uint8)
    state = shifted.init_state((None,))
    shifted(torch.tensor([-55.0, 200.0]), state=state)  # scale 1, zero point 55
    x = torch.tensor([-55.5, -55.0, 3.3, 200.0, 200.5])
    assert shifted.backward(grad, x, state).tolist() == [
        g * m for g, m in zip(grad.tolist(), affine, strict=True)
    ]
    plain = Quantizer(format=formats.e4m3, range=None, straight_through=mode)
    x = torch.tensor([-449.0, -448.0, 3.3, 448.0, 449.0], dtype=torch.bfloat16)
    x[0], x[-1] = -460, 460
    got = plain.backward(grad.bfloat16(), x, None)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [g * m for g, m in zip(grad.tolist(), symmetric, strict=True)]
    assert straight_through(plain) == (mode == "identity")


def test_compiled_quantizers_equal_eager() -> None:
    recipes = [
        Quantizer(format=uint8, range=minmax),
        Quantizer(format=int8, granularity=per_axis(0)),
        Quantizer(format=int8, rounding=stochastic()),
        Quantizer(
            format=formats.e4m3,
            granularity=Granularity(((1, 32),), rest="each"),
            scale=Scale(formats.e8m0),
        ),
    ]

    def run(x: Tensor, key: Tensor) -> list[QTensor]:
        return [quantizer(x, key=key) for quantizer in recipes]

    x = numbers(12, 40)
    x[3] = 0.0
    for fast, eager in zip(compiled(run)(x, KEY), run(x, KEY), strict=True):
        assert same_bits(fast.elements, eager.elements)
        assert same_bits(fast.scale, eager.scale)


class _Halving:
    """A quantizer of a user: integers by halves, a backward of its own."""

    def __call__(self, x: Tensor, *, state=None, key=None, training=True) -> QTensor:
        return QTensor((x * 2).round() / 2, block=tuple(x.shape))

    def backward(self, grad: Tensor, x: Tensor, state: object) -> Tensor:
        return grad * 2


def test_a_users_quantizer_is_asked_for_its_backward_and_given_a_key() -> None:
    assert not straight_through(_Halving()) and needs_key(_Halving())
    assert needs_key(Quantizer(format=int8, rounding=stochastic()))
    assert not needs_key(Quantizer(format=int8))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"format": "int99"}, "format: unknown"),
        ({"format": int8, "range": None}, "range"),
        ({"format": int8, "range": "absmax"}, "range"),
        ({"format": int8, "rounding": "nearest"}, "rounding"),
        ({"format": int8, "granularity": 0}, "granularity"),
        ({"format": int8, "scale": formats.e8m0}, "scale"),
        ({"format": formats.e4m3, "range": None, "scale": Scale(formats.e8m0)}, "scale"),
        ({"format": int8, "straight_through": "clip"}, "straight_through"),
        ({"format": formats.e4m3, "range": None, "granularity": per_sample}, "granularity"),
        (
            {"format": int8, "range": ema(train_on="batch"), "straight_through": "strict"},
            "straight_through",
        ),
        *(
            ({"format": fmt, "range": rule}, r"pass range=None .*2\^48")
            for fmt in (formats.fp32, formats.tf32, formats.bf16, formats.e8m0, FloatFormat(7, 2))
            for rule in (absmax, ema())
        ),
    ],
    ids=str,
)
def test_bad_quantizers_are_refused(options: dict, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        Quantizer(**options)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool], ids=str)
def test_tensors_that_are_not_real_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"cannot quantize a tensor of torch\."):
        Quantizer(format=int8)(torch.ones(3).to(dtype))


def test_a_missing_key_or_state_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        Quantizer(format=int8, rounding=stochastic())(torch.ones(3))
    with pytest.raises(ValueError, match="state"):
        Quantizer(format=int8, range=ema())(torch.ones(3))


@needs_cuda
@pytest.mark.parametrize("fmt", [int8, uint8, formats.e4m3, formats.e2m1], ids=str)
def test_cuda_quantizers_equal_cpu(fmt) -> None:
    x = numbers(64, 96)
    for grain in (per_tensor, per_axis(0), Granularity(((1, 32),), rest="each")):
        for mode in (nearest_even, stochastic()):
            quantizer = Quantizer(format=fmt, granularity=grain, range=minmax, rounding=mode)
            fast, slow = quantizer(x.cuda(), key=KEY.cuda()), quantizer(x, key=KEY)
            assert same_bits(fast.elements, slow.elements)
            assert same_bits(fast.dequantize(), slow.dequantize())


@pytest.mark.parametrize("fmt", [IntFormat(8), uint8, formats.e4m3])
def test_what_is_finite_in_fp64_has_a_finite_scale(fmt: formats.Format) -> None:
    q = Quantizer(format=fmt)(torch.tensor([1e39, 1.0], dtype=torch.float64))
    assert q.scale is not None and torch.isfinite(q.scale).all()
    values = q.dequantize().double()
    torch.testing.assert_close(values[0], torch.tensor(3.4028e38).double(), rtol=1e-2, atol=0.0)
    infinite = Quantizer(format=fmt)(torch.tensor([float("inf"), 1.0], dtype=torch.float64))
    assert infinite.scale is not None and not torch.isfinite(infinite.scale).all()


def test_views_that_negate_are_rounded() -> None:
    x = torch.randn(64)
    view = torch._neg_view(-x)
    for fmt in (formats.e4m3, formats.tf32):
        assert torch.equal(round_to(view, fmt), round_to(x, fmt))
        quantizer = Quantizer(format=fmt, range=None)
        assert torch.equal(quantizer(view).elements, quantizer(x).elements)


@pytest.mark.parametrize("served", [nullcontext, kernels.eager], ids=["fused", "eager"])
@pytest.mark.parametrize("scale", [1.0, 1e38, INF])
def test_an_infinite_element_stays_infinite(scale: float, served) -> None:
    elements = torch.tensor([INF, -INF, NAN, 57344.0])
    with served():
        found = QTensor(elements, torch.tensor([scale]), None, formats.e5m2, (4,)).dequantize()
    assert found[:2].tolist() == [INF, -INF] and found[2].isnan()
    assert found[3] == (INF if scale == INF else min(57344.0 * scale, reference.MOST))
