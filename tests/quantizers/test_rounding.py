"""Roundings against the reference: ties, zeros, subnormals, specials, binade edges, noise."""

from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_checks import MODES, SMALL, VARIANTS, awkward, compiled, needs_cuda, same_bits
from torch import Tensor

from quantizers import (
    FloatFormat,
    Quantizer,
    Rounding,
    formats,
    kernels,
    random_bits,
    root_key,
)
from quantizers.rounding import ceil, floor, nearest_even, round_to, round_to_float, stochastic

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-39, float("inf"), -float("inf"), float("nan")]
HALVES = [k / 2 for k in range(-9, 10)] + [8388607.5, -4194304.5, 16777216.0, 1e30]


def draws(x: Tensor, seed: int = 0) -> Tensor:
    return random_bits(root_key(seed), x.shape)


def slow_float(x: Tensor, fmt: FloatFormat, mode: Rounding, bits: Tensor) -> Tensor:
    shift = 32 - mode.random_bits
    out = []
    for value, word in zip(x.tolist(), bits.tolist(), strict=True):
        draw = (((word % 2**32) >> shift) + 0.5) / 2**mode.random_bits
        out.append(reference.round_float(value, fmt, mode.mode, draw))
    return torch.tensor(out, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_rounding_to_integers_equals_the_reference(mode: Rounding, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL + HALVES, dtype=dtype)
    x = torch.cat([x, torch.linspace(-4, 4, 257, dtype=dtype)])
    x = torch.cat([x, x.nextafter(torch.full_like(x, 9e9)), x.nextafter(torch.full_like(x, -9e9))])
    bits = draws(x)
    expected = []
    for value, word in zip(x.tolist(), bits.tolist(), strict=True):
        draw = (((word % 2**32) >> 9) + 0.5) / 2**23
        expected.append(reference.round_integer(value, mode.mode, draw))
    assert same_bits(mode(x, bits), torch.tensor(expected, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fmt", [*SMALL, *VARIANTS], ids=str)
def test_rounding_to_small_floats_equals_the_reference(
    fmt: FloatFormat, dtype: torch.dtype
) -> None:
    x = awkward(fmt, dtype)
    for mode in MODES:
        bits = draws(x)
        got, expected = round_to_float(x, fmt, mode, bits), slow_float(x, fmt, mode, bits)
        assert same_bits(got, expected), mode


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.sampled_from([formats.fp16, formats.bf16, formats.tf32, FloatFormat(6, 9)]),
    st.sampled_from(MODES),
)
def test_rounding_to_wide_floats_equals_the_reference(
    values: list[float], fmt: FloatFormat, mode: Rounding
) -> None:
    x = torch.tensor(values)
    bits = draws(x)
    assert same_bits(round_to_float(x, fmt, mode, bits), slow_float(x, fmt, mode, bits))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_largest_float_below_a_power_of_two_keeps_its_own_exponent(mode: Rounding) -> None:
    # floor(log2 x) calls 237 of these 241 numbers a power of two
    x = torch.ldexp(torch.ones(241), torch.arange(-120, 121)).nextafter(torch.zeros(241))
    for fmt in (formats.bf16, formats.e5m2):
        bits = draws(x)
        assert same_bits(round_to_float(x, fmt, mode, bits), slow_float(x, fmt, mode, bits))


def random_fp32(count: int) -> Tensor:
    """fp32 numbers of uniformly random bit patterns: every exponent, subnormals, inf, NaN."""
    return random_bits(root_key(7), (count,)).view(torch.float32)


def all_16_bit(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


PLAIN = {torch.float16: FloatFormat(5, 10), torch.bfloat16: FloatFormat(8, 7)}


@pytest.mark.parametrize("fmt", [formats.fp16, formats.bf16], ids=str)
def test_round_to_equals_the_native_cast(fmt: FloatFormat) -> None:
    native = {"fp16": torch.float16, "bf16": torch.bfloat16}[fmt.name]
    plain = PLAIN[native]  # unnamed, so that the arithmetic runs instead of the cast
    for x in (all_16_bit(torch.float16), all_16_bit(torch.bfloat16), random_fp32(2**18)):
        wide = x.float()
        expected = wide.to(native).float()
        assert same_bits(round_to(wide, fmt), expected)
        assert same_bits(round_to(wide, plain), expected)
        assert same_bits(round_to(x, fmt), expected.to(x.dtype))


def test_round_to_from_fp64_rounds_once() -> None:
    x = random_bits(root_key(8), (2**16,)).double() * 2.0**-28
    x = x * (1 + 2.0**-40)  # below fp32's resolution: a cast through fp32 rounds twice
    expected = torch.from_numpy(x.numpy().astype(np.float16).astype(np.float64))
    assert same_bits(round_to(x, formats.fp16), expected)
    tie = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    assert round_to(tie, formats.fp16).item() == 1 + 2.0**-10


@pytest.mark.parametrize(
    ("fmt", "theirs"),
    [
        (formats.e5m2, ml_dtypes.float8_e5m2),
        (formats.e4m3, ml_dtypes.float8_e4m3fn),
        (formats.e3m2, ml_dtypes.float6_e3m2fn),
        (formats.e2m3, ml_dtypes.float6_e2m3fn),
        (formats.e2m1, ml_dtypes.float4_e2m1fn),
    ],
    ids=str,
)
def test_nearest_even_equals_ml_dtypes_within_range(fmt: FloatFormat, theirs: type) -> None:
    x = torch.cat([random_fp32(2**16), awkward(fmt)])
    x = x[x.abs() <= fmt.largest]
    expected = torch.from_numpy(x.numpy().astype(theirs).astype(np.float32))
    assert same_bits(round_to_float(x, fmt), expected)


def test_rounding_through_bf16_rounds_twice() -> None:
    x = torch.linspace(1.0, 2.0, 2**16 + 1)
    once = round_to_float(x, formats.e4m3)
    twice = round_to_float(round_to_float(x, formats.bf16), formats.e4m3)
    changed = (once != twice).float().mean().item()
    assert 0.02 < changed < 0.04  # 3.1 %: so a quantizer takes the widest copy
    assert torch.equal(once, torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e4m3fn) * 1.0))


def test_compiled_rounding_equals_eager() -> None:
    # subnormals included: torch 2.13 with g++ does not flush them; a compiler that does fails here
    x = torch.cat([random_fp32(2**14), awkward(formats.e4m3), awkward(formats.e5m2)])
    # fp16 and bf16: eager casts, but the compiler would drop a cast there and back
    wanted = [formats.fp16, formats.bf16, formats.e4m3, formats.e8m0]
    bits, random = draws(x), stochastic()  # torch 2.11 calls none that is made in the graph

    def rounded(x: Tensor, bits: Tensor) -> list[Tensor]:
        return [round_to_float(x, fmt) for fmt in wanted] + [
            round_to_float(x, formats.e4m3, random, bits),
            *(mode(x, bits) for mode in MODES),
        ]

    for fast, eager in zip(compiled(rounded)(x, bits), rounded(x, bits), strict=True):
        assert same_bits(fast, eager)


@pytest.mark.parametrize("random", [1, 23])
def test_every_element_of_every_format_is_a_fixed_point_of_stochastic_rounding(
    random: int,
) -> None:
    mode = stochastic(random)
    words = (0, -1)  # the draws most and least inclined to go up
    integers = torch.arange(-(2**15), 2**16).float()  # every IntFormat's elements
    for word in words:
        bits = torch.full(integers.shape, word, dtype=torch.int32)
        assert torch.equal(mode(integers, bits), integers)
    for fmt in [*formats.NAMED.values(), *VARIANTS]:
        if isinstance(fmt, FloatFormat) and fmt.bits <= 16:
            values = fmt.decode(fmt.codes())
            for word in words:
                bits = torch.full(values.shape, word, dtype=torch.int32)
                assert same_bits(round_to_float(values, fmt, mode, bits), values)


def test_stochastic_integers_are_unbiased() -> None:
    n = 20000
    x = torch.cat([torch.linspace(-3, 3, 49), torch.tensor([127.003, 32766.25, -1e-3])])
    y = stochastic()(x.expand(n, -1), draws(torch.empty(n, x.numel()), seed=3))
    assert bool(((y == x.floor()) | (y == x.ceil())).all())
    p = (x - x.floor()).double()
    sigma = (p * (1 - p) / n).sqrt()
    assert bool(((y.double().mean(0) - x).abs() <= 5 * sigma + 2.0**-24).all())  # n=20000, 5 sigma


@pytest.mark.parametrize("fmt", [formats.bf16, *SMALL], ids=str)
def test_stochastic_floats_are_unbiased(fmt: FloatFormat) -> None:
    n = 20000
    top = min(fmt.largest, 30.0)
    x = torch.linspace(max(fmt.smallest, 1e-3), top, 41)
    x = torch.cat([x, x * 2.0**-7])
    x = torch.cat([x[x >= fmt.smallest] if not fmt.zero else x, -x[x > 9] if fmt.signed else x])
    x = x[x.abs() >= fmt.smallest] if not fmt.zero else x
    y = round_to_float(x.expand(n, -1), fmt, stochastic(), draws(torch.empty(n, x.numel()), 4))
    low, high = round_to_float(x, fmt, floor).double(), round_to_float(x, fmt, ceil).double()
    step = high - low
    assert bool(((y == low) | (y == high)).all())
    assert int((step > 0).sum()) > 20
    sigma = ((x - low) * (high - x)).clamp(min=0).sqrt() / n**0.5
    error = (y.double().mean(0) - x).abs()
    assert bool((error <= 5 * sigma + step * 2.0**-24 + 1e-12).all())  # n=20000, 5 sigma


@pytest.mark.parametrize("random", [1, 2, 4, 8])
def test_few_random_bits_round_up_for_the_stated_draws(random: int) -> None:
    words = torch.arange(2**random) << (32 - random)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    for x in torch.linspace(0, 1, 129)[:-1].tolist():
        mean = stochastic(random)(torch.full((2**random,), x), words).mean().item()
        up = sum((u + 0.5) / 2**random < x for u in range(2**random)) / 2**random
        assert mean == up
        assert abs(mean - x) <= 2.0 ** -(random + 1)


@pytest.mark.parametrize("random", [0, 24, 1.5, True])
def test_bad_random_bits_are_refused(random: int) -> None:
    with pytest.raises((TypeError, ValueError), match="random_bits"):
        stochastic(random)


def test_bad_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="rounding"):
        Rounding("up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="random_bits"):
        Rounding("floor", 3)
    with pytest.raises(ValueError, match="random bits"):
        stochastic()(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "fmt",
    [
        FloatFormat(2, 3, bias=-60, name="large steps"),
        FloatFormat(3, 2, bias=140, specials="finite", name="below 2^-126"),
        FloatFormat(2, 0, bias=149, specials="finite", zero=False, name="from 2^-149"),
        FloatFormat(4, 3, bias=140, signed=False, name="unsigned, below 2^-126"),
    ],
    ids=str,
)
def test_steps_far_from_1_round_as_the_others_do(fmt: FloatFormat, dtype: torch.dtype) -> None:
    x = awkward(fmt, dtype)
    x = torch.cat([x, torch.tensor([1e-35, -1e-35, 1e-45, -1e-45], dtype=dtype)])
    key = root_key(2)
    for mode in MODES:
        bits = random_bits(key, x.shape)
        quantizer = Quantizer(format=fmt, range=None, rounding=mode)
        slow = slow_float(x, fmt, mode, bits)
        for served in (nullcontext, kernels.eager):
            with served():
                assert same_bits(quantizer(x, key=key).elements, slow), mode


@needs_cuda
def test_cuda_rounding_equals_cpu() -> None:
    x = torch.cat([random_fp32(2**16), awkward(formats.e4m3)])
    bits = draws(x)
    for fmt in (formats.fp16, formats.bf16, formats.tf32, *SMALL, *VARIANTS):
        for mode in MODES:
            on_gpu = round_to_float(x.cuda(), fmt, mode, bits.cuda())
            assert same_bits(on_gpu, round_to_float(x, fmt, mode, bits)), (fmt, mode)
    assert nearest_even(x.cuda()).isfinite().any()
