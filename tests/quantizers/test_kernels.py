"""Fused kernels against the eager path: the same bits, or out of the way."""

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_checks import MODES, VARIANTS, awkward, same_bits
from torch import Tensor

from quantizers import (
    FloatFormat,
    Format,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    absmax,
    blocks,
    ceil,
    ema,
    formats,
    int8,
    kernels,
    minmax,
    nearest_even,
    per_axis,
    per_sample,
    per_tensor,
    per_token,
    random_bits,
    root_key,
    stochastic,
    uint8,
)
from quantizers.kernels import compiled, compiled_elements, compiled_whole, serving, team
from quantizers.kernels.layout import walk
from quantizers.kernels.quantize import elements
from quantizers.kernels.unshift import unshifted
from quantizers.ranges import rules
from quantizers.steps import elements_of, quantize

#: scales and roundings are tried together at random
pytestmark = pytest.mark.filterwarnings("ignore::quantizers.ClippingScaleWarning")
KEY = root_key(1)
NAN, INF = float("nan"), float("inf")
INT16, UINT16 = IntFormat(16), IntFormat(16, signed=False, symmetric=False)
TARGETS = [int8, uint8, INT16, UINT16, formats.e4m3]
FLOATS = [f for f in formats.NAMED.values() if isinstance(f, FloatFormat)] + VARIANTS
PLAIN = [per_tensor, per_axis(0), per_axis(1), per_axis(-1), per_axis(0, 1), per_sample, per_token]
CUT = [
    blocks(2),
    blocks(3),
    Granularity(((0, 3), (1, 2)), rest="each"),
]
DTYPES = SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random_bits(root_key(seed), shape).float() / 2**29


def wild(*shape: int, seed: int = 0) -> Tensor:
    """Every kind of number: any exponent, subnormals, signed zeros, ties, infinities, NaN."""
    bits = random_bits(root_key(seed), shape)
    ties = (bits % 19).float() / 2
    usual = numbers(*shape, seed=seed + 1)
    kind = random_bits(root_key(seed + 2), shape) % 8
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, NAN, INF, -INF])[bits % 9]
    x = torch.where(kind == 0, special, torch.where(kind.abs() < 3, ties, usual))
    return torch.where(kind == 7, bits.view(torch.float32), x)


def same(actual: Tensor | None, expected: Tensor) -> bool:
    return actual is not None and same_bits(actual, expected)


def eager(quantizer: Quantizer, x: Tensor, key: Tensor = KEY) -> QTensor:
    with kernels.eager():
        return quantizer(x, key=key)


def fused(quantizer: Quantizer, x: Tensor, q: QTensor, key: Tensor = KEY) -> Tensor | None:
    """What the kernel alone makes with the scales of q; None where it does not serve x."""
    fmt = quantizer.format
    return elements(x, q.scale, q.zero_point, q.block, fmt, quantizer.rounding, key)


def check(quantizer: Quantizer, x: Tensor, key: Tensor = KEY, *, served: bool = True) -> None:
    expected = eager(quantizer, x, key)
    own = fused(quantizer, x, expected, key)
    assert (own is not None) == served, f"{quantizer} {tuple(x.shape)} {x.stride()}"
    got = quantizer(x, key=key)
    assert own is None or same(own, expected.elements)
    assert same(got.elements, expected.elements)
    assert expected.scale is None or same(got.scale, expected.scale)


# The same bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, stochastic(1), stochastic(8)], ids=str)
@pytest.mark.parametrize("fmt", TARGETS, ids=str)
def test_every_target_and_rounding(fmt, mode) -> None:
    x = torch.cat([wild(61, 7), numbers(3, 7), torch.zeros(2, 7), torch.full((1, 7), 2.5)])
    for grain in (per_tensor, per_axis(0), per_axis(1)):
        for rule in (absmax, minmax):
            quantizer = Quantizer(format=fmt, granularity=grain, range=rule, rounding=mode)
            for values in (x, x.nan_to_num(1.5, 1.5, 1.5), numbers(6, 4)):
                check(quantizer, values)


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        *itertools.product([int8], DTYPES),
        (uint8, HALF),
        (formats.e4m3, HALF),
        (formats.e4m3, BRAIN),
    ],
    ids=str,
)
def test_every_source(fmt, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    x = wild(64, 9) if dtype == torch.float32 else every.view(dtype).view(64, -1)
    for mode in (nearest_even, stochastic()):
        for grain in (per_tensor, per_axis(0), per_axis(1)):
            check(Quantizer(format=fmt, rounding=mode, granularity=grain, range=minmax), x)
    if isinstance(fmt, FloatFormat):
        check(Quantizer(format=fmt, range=None), x)


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_every_float_format_and_overflow(fmt: FloatFormat) -> None:
    x = awkward(fmt) if fmt.bits <= 8 else torch.cat([wild(2000), awkward(formats.e5m2)])
    for overflow in ("saturate", "nan", "inf") if fmt.has_inf else ("saturate", "nan"):
        stated = replace(fmt, overflow=overflow)
        for mode in (nearest_even, stochastic(8), ceil):
            check(Quantizer(format=stated, range=None, rounding=mode), x)
            if fmt.largest > 2.0**48:  # none that a range fills
                continue
            scaled = Quantizer(
                format=stated, rounding=mode, scale=Scale(formats.e8m0, rounding=nearest_even)
            )
            check(scaled, x.nan_to_num(1.0, 2.0, -2.0))


@pytest.mark.parametrize("fmt", [int8, uint8, formats.e4m3], ids=str)
def test_any_scale_and_zero_point(fmt) -> None:
    scale = torch.tensor([0.0, -0.0, 1e-45, 1e-38, 1.0, -2.0, 3e38, INF, -INF, NAN, 0.7, 3.0])
    zero = torch.arange(-6, 6, dtype=torch.int32) * 40 if fmt is uint8 else None
    for x, block in ((wild(5, 12), (5, 1)), (wild(12, 5).t(), (5, 1)), (wild(7, 12), (7, 1))):
        for stride in (1, 3):  # scales that are not adjacent, nor at the start of their memory
            spread = scale.repeat_interleave(stride)[stride - 1 :: stride].view(1, 12)
            shift = None if zero is None else zero.view(1, 12)
            for mode in (nearest_even, stochastic()):
                with kernels.eager():
                    expected = elements_of(x, spread, shift, block, fmt, mode, KEY)
                got = elements(x, spread, shift, block, fmt, mode, KEY)
                assert same(got, expected)


INTEGERS = [IntFormat(n, s, e) for n in range(2, 17) for s in (True, False) for e in (True, False)]


@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
def test_what_is_not_a_number_is_element_0(fmt: IntFormat) -> None:
    """On every path, in every layout, whatever the zero point: the scale alone tells of it.  An
    infinite quotient is the format's end."""
    scales = torch.tensor([NAN, INF, -INF, 1e-45, 0.0, 1.0])
    ends = torch.tensor([NAN, INF, -INF, 1.0, 3e38, 0.0])
    x = ends.repeat(3, 2, 1).repeat_interleave(6, 1)  # (3, 12, 6), each with every scale
    zero = None if fmt.symmetric else torch.full((1, 12, 1), fmt.high - 1, dtype=torch.int32)
    scale = scales.repeat(2).view(1, 12, 1)
    for mode in (*MODES, stochastic(3)):
        quantizer = Quantizer(format=fmt, rounding=mode, granularity=per_axis(1))
        quotient = x / torch.where(scale == 0, INF, scale)
        assert quotient.isnan().any() and (quotient == INF).any()
        for values in (x, x.transpose(0, 2).contiguous().transpose(0, 2), x[1:]):
            with kernels.eager():
                expected = elements_of(values, scale, zero, (len(values), 1, 6), fmt, mode, KEY)
            got = elements(values, scale, zero, (len(values), 1, 6), fmt, mode, KEY)
            assert same(got, expected)
            lost = quotient[: len(values)].isnan()
            assert not expected[lost].any()
            assert (expected[quotient[: len(values)] == INF] == fmt.high).all()
            assert (expected[quotient[: len(values)] == -INF] == fmt.low).all()
    for bad in (NAN, INF, -INF):
        for sign in (1, -1):  # the quotients of one bad element's granule: NaN, 0 and -0
            x = sign * numbers(4, 6, 5, 3)
            x[1, 2, 3, 1] = bad
            for grain in (per_tensor, per_axis(1), blocks(2)):
                for rule in (absmax, minmax):
                    quantizer = Quantizer(format=fmt, range=rule, granularity=grain)
                    for values in (x, last(x), x.transpose(1, 3)):
                        q = quantizer(values)
                        assert_equal(q, eager(quantizer, values))
                        assert q.scale is not None and not q.scale.isfinite().all()
                        gone = (values / q.spread(q.scale)).isnan()
                        assert gone.any() and not q.elements[gone].any()
                        assert not q.dequantize()[gone].isfinite().any()


@pytest.mark.parametrize("key", [-1, 0, 2**31, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63)])
def test_every_key(key: int) -> None:
    check(Quantizer(format=int8, rounding=stochastic()), numbers(40, 7), torch.tensor(key))


# Layouts ------------------------------------------------------------------------------------------


def layouts() -> dict[str, tuple[Tensor, bool | None]]:
    """Tensors, and whether a kernel serves them with one scale (None: unless it needs noise)."""
    x, deep = wild(4, 6, 5, 8), wild(2, 6, 3, 5, 4)
    wide = wild(1, 6, 1, 8)
    return {
        "contiguous": (x, True),
        "channels_last": (x.contiguous(memory_format=torch.channels_last), True),
        "channels_last_3d": (deep.contiguous(memory_format=torch.channels_last_3d), True),
        "transposed": (x.transpose(0, 3), True),
        "permuted": (x.permute(2, 0, 3, 1), True),
        "sliced": (x[1:3, 2:5], True),
        "sliced, last axis": (x[..., 3:6], True),
        "sliced, channels_last": (deep.movedim(1, -1)[:, :, 1:3].movedim(-1, 1), True),
        "every second": (x[..., ::2], False),
        "expanded outside": (x[:1].expand(3, -1, -1, -1), False),
        "expanded inside": (x[..., :1].expand(-1, -1, -1, 3), False),
        "size 1": (wide, True),
        "size 1, channels_last": (wide.contiguous(memory_format=torch.channels_last), True),
        "pixels": (wild(3, 6, 1, 1), True),
        "offset": (wild(1000)[7:967].view(4, 6, 5, 8), True),
        "windows": (wild(100).as_strided((4, 3, 2, 5), (7, 2, 3, 1)), True),
        "matrix": (wild(9, 7), True),
        "one element": (wild(1, 1), True),
        "six axes": (wild(2, 3, 2, 3, 2, 3).permute(1, 4, 0, 3, 2, 5), None),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("fmt", [int8, formats.e4m3], ids=str)
def test_every_layout(name: str, fmt) -> None:
    x, served = layouts()[name]
    for mode in (nearest_even, stochastic()):
        for grain in PLAIN:
            quantizer = Quantizer(format=fmt, granularity=grain, rounding=mode)
            expected = eager(quantizer, x)
            own = fused(quantizer, x, expected)
            if grain == per_tensor:
                assert (own is not None) == (mode == nearest_even if served is None else served)
            if own is not None:
                assert own.stride() == torch.empty_like(x).stride()
                assert same(own, expected.elements)
            assert same(quantizer(x, key=KEY).elements, expected.elements)


def test_usual_layouts_are_served_at_every_plain_granularity() -> None:
    for name in ("contiguous", "channels_last", "channels_last_3d", "transposed", "matrix"):
        x = layouts()[name][0].nan_to_num(1.0, 1.0, 1.0)
        for grain in PLAIN[: 4 if name == "transposed" else 6]:
            check(Quantizer(format=int8, granularity=grain, rounding=stochastic()), x)
    check(Quantizer(format=int8, granularity=per_token), wild(6, 8))


def test_scalars_and_empty_tensors() -> None:
    for fmt in (int8, uint8, formats.e4m3):
        for mode in (nearest_even, stochastic()):
            quantizer = Quantizer(format=fmt, rounding=mode, range=minmax)
            check(quantizer, torch.tensor(-3.3))
            for shape in ((0,), (3, 0, 2), (0, 4)):
                check(quantizer, torch.zeros(shape), served=False)


@pytest.mark.parametrize("fmt", [int8, uint8, formats.e4m3], ids=str)
@pytest.mark.parametrize("grain", CUT, ids=str)
def test_blocks_that_fill_their_axes_are_served(grain: Granularity, fmt: Format) -> None:
    quantizer = Quantizer(format=fmt, granularity=grain, range=minmax, rounding=stochastic())
    for shape in ((6, 12), (3, 6), (12, 24), (1, 6)):
        for values in (wild(*shape), numbers(*shape), numbers(*shape).bfloat16()):
            check(quantizer, values)
            check(replace(quantizer, range=absmax, scale=Scale(formats.e4m3)), values)
            check(replace(quantizer, rounding=nearest_even), values)
    whole = Granularity(
        ((-1, 32),), rest="each"
    )  # a block as long as its axis is a granule for each row
    check(replace(quantizer, granularity=whole), wild(6, 32))


@pytest.mark.parametrize("mode", [nearest_even, stochastic()], ids=str)
@pytest.mark.parametrize("fmt", [int8, uint8, formats.e2m1], ids=str)
def test_shorter_last_blocks_are_served_along_the_innermost_axis(fmt: Format, mode) -> None:
    quantizer = Quantizer(format=fmt, granularity=blocks(3), range=minmax, rounding=mode)
    tile = Granularity(((0, 2), (1, 4)), rest="each")
    for shape in ((7, 11), (1, 5), (4, 6), (6, 3, 7), (40, 67)):
        for values in (wild(*shape), numbers(*shape).half()):
            check(quantizer, values)
            check(replace(quantizer, granularity=blocks(16)), values)
    for rows in (4, 6):
        check(replace(quantizer, granularity=tile), wild(rows, 9))
    check(replace(quantizer, granularity=tile), wild(5, 8), served=False)
    check(quantizer, wild(11, 7).t(), served=False)


@pytest.mark.parametrize("mode", [*MODES, stochastic(8)], ids=str)
@pytest.mark.parametrize("fmt", [int8, formats.e4m3, formats.e5m2, formats.e2m1], ids=str)
def test_elements_by_multiplication(fmt: Format, mode) -> None:
    """Of every kind of number, by factors that take them beyond fp32 and below it."""
    factors = torch.tensor([1.0, 0.3, 0.0, 1e38, 3e38, 1e-30, 1e-45, NAN, INF, 7.0])
    x = wild(10, 96)
    for block, scale in (((1, 96), factors.view(10, 1)), ((10, 96), factors[1:2].view(1, 1)),
                         ((1, 10), factors.repeat(10).view(10, 10))):  # fmt: skip
        own = elements(x, scale, None, block, fmt, mode, KEY, True)
        with kernels.eager():
            assert same(own, elements_of(x, scale, None, block, fmt, mode, KEY, True))


def test_extremes_of_blocks_are_found_in_one_pass() -> None:
    for shape, block in (
        ((6, 12), (1, 4)), ((6, 12), (1, 12)), ((6, 12), (3, 12)), ((2, 3, 4), (1, 3, 4)),
        ((2, 3, 4), (2, 3, 4)), ((5, 1), (1, 1)), ((7,), (7,)), ((6, 12), (2, 4)),
        ((6, 10), (1, 4)), ((7, 10), (2, 4)), ((3, 7, 10), (1, 2, 4)), ((2, 3, 8, 8), (1, 3, 2, 8)),
        ((3, 40, 67), (1, 1, 16)),
    ):  # fmt: skip
        for dtype in DTYPES:
            x = wild(*shape).to(dtype)
            found = rules.extremes.forms["cpu"](x, block)
            assert found is not None
            with kernels.eager():
                expected = rules.extremes(x, block)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.isnan(), other.flatten().isnan())
                assert torch.equal(one.nan_to_num(1.0), other.flatten().nan_to_num(1.0))
    for shape, block in (((4, 6, 12), (2, 2, 4)), ((0, 4), (1, 4))):
        assert rules.extremes.forms["cpu"](torch.zeros(shape), block) is None
    assert rules.extremes.forms["cpu"](numbers(4, 6).t(), (1, 4)) is None


def test_stochastic_elements_without_a_key_are_refused() -> None:
    x = numbers(6, 8)
    assert elements(x, None, None, (6, 8), int8, stochastic(), None) is None
    with pytest.raises(ValueError, match=r"needs a key: pass key=root_key\(seed, step\), of quan"):
        NOISY(x)


def test_a_plan_is_of_one_layout_and_one_quantizer() -> None:
    """Quantizers and tensors that differ in one thing, in turn: none takes the other's plan."""
    x = numbers(4, 6, 5, 4)
    tensors = [x, last(x), x.transpose(1, 3), x.half(), x.view(4, 6, 10, 2), x[:2]]
    grains = [per_tensor, per_axis(0), per_axis(1)]
    e4m3 = formats.e4m3
    quantizers = [
        Quantizer(format=fmt, range=rule, granularity=grain, rounding=mode)
        for fmt in (int8, IntFormat(7), uint8, e4m3, replace(e4m3, overflow="nan"))
        for rule in (absmax, minmax)
        for grain in grains
        for mode in (nearest_even, ceil, stochastic(3), stochastic())
    ]
    for _ in range(2):
        for quantizer in quantizers:
            for values in tensors:
                assert_equal(quantizer(values, key=KEY), eager(quantizer, values))
    states = [INPUT.init_state((None, 6, None, None)) for _ in range(2)]
    for momentum in (0.1, 0.9, 0.1):
        quantizer = replace(INPUT, range=ema(minmax, momentum=momentum, train_on="batch"))
        got = quantizer(x * momentum, state=states[0])
        with kernels.eager():
            assert_equal(got, quantizer(x * momentum, state=states[1]))
        assert all(same_bits(states[0][name], states[1][name]) for name in states[0])


def test_noise_follows_the_logical_index() -> None:
    x = numbers(3, 6, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    other = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    for grain in (per_tensor, per_axis(1), per_sample):
        for fmt in (int8, formats.e4m3):
            quantizer = Quantizer(format=fmt, granularity=grain, rounding=stochastic())
            codes = [quantizer(t, key=KEY).elements for t in (x, last, other)]
            assert same(codes[1], codes[0]) and same(codes[2], codes[0])
            assert codes[1].is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_order_and_format(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(shape))))
    x = wild(*[size + 1 for size in shape], seed=data.draw(st.integers(0, 99)))
    cuts = data.draw(st.lists(st.integers(0, 1), min_size=len(shape), max_size=len(shape)))
    for axis, (size, start) in enumerate(zip(shape, cuts, strict=True)):
        x = x.narrow(axis, start, size)
    x = x.permute(order)
    x = x.contiguous().permute(order) if data.draw(st.booleans()) else x
    x = x if data.draw(st.booleans()) else x.nan_to_num(2.0, 2.0, 2.0)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    quantizer = Quantizer(
        format=data.draw(st.sampled_from([*TARGETS, formats.e3m0, formats.e2m1, formats.e5m2])),
        granularity=per_axis(*axes),
        range=data.draw(st.sampled_from([absmax, minmax])),
        rounding=data.draw(st.sampled_from([nearest_even, stochastic(), stochastic(4)])),
    )
    expected = eager(quantizer, x)
    assert same(quantizer(x, key=KEY).elements, expected.elements)


def test_a_walk_visits_every_element_once() -> None:
    for name, (x, _) in layouts().items():
        result = torch.empty_like(x, dtype=torch.int8)
        for grain in PLAIN:
            block = grain.block_shape(x.shape)
            path = walk(tuple(x.shape), x.stride(), result.stride(), block, True)
            if path is None:
                continue
            seen = torch.zeros(1, 4, dtype=torch.int64)  # in x, result; logical index; granule
            for size, *strides in torch.tensor(path.outer).view(5, 4).T.tolist():
                steps = torch.arange(size).view(-1, 1) * torch.tensor(strides)
                seen = (seen.unsqueeze(1) + steps).view(-1, 4)
            inner = torch.tensor([1, 1, path.index_step, path.granule_step])
            seen = (seen.unsqueeze(1) + torch.arange(path.row).view(-1, 1) * inner).view(-1, 4)
            logical = seen[seen[:, 2].argsort()]
            assert torch.equal(logical[:, 2], torch.arange(x.numel())), name
            for column, tensor in ((0, x), (1, result)):
                memory = torch.arange(10**4).as_strided(tensor.shape, tensor.stride())
                assert torch.equal(logical[:, column], memory.flatten()), name
    assert walk((2**16, 2**15), (2**15, 1), (2**15, 1), (2**16, 2**15), True) is None
    far = walk((4, 8), (2**40, 1), (8, 1), (4, 8), False)
    assert far is not None and 2**40 in far.outer  # int64 all the way


# Threads, processes -------------------------------------------------------------------------------


def test_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    sizes = [team.SMALL - 1, team.SMALL, team.SMALL + 1, 5 * team.SMALL + 7]
    try:
        for size in sizes:
            x = wild(size).nan_to_num(1.0, 1.0, 1.0)
            quantizers = [
                (Quantizer(format=int8, rounding=stochastic()), x),
                (Quantizer(format=formats.e4m3), x),
                (Quantizer(format=int8, granularity=per_axis(0)), x[: size // 7 * 7].view(-1, 7)),
                (Quantizer(format=int8, granularity=per_axis(1)), x[: size // 7 * 7].view(-1, 7)),
            ]
            for quantizer, values in quantizers:
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    check(quantizer, values)
    finally:
        torch.set_num_threads(before)


def test_two_python_threads_at_once() -> None:
    before = torch.get_num_threads()
    quantizer = Quantizer(format=int8, rounding=stochastic())
    tensors = [wild(3 * team.SMALL + i, seed=i).nan_to_num(1.0, 1.0, 1.0) for i in range(2)]
    expected = [eager(quantizer, x).elements for x in tensors]
    bad: list[int] = []

    def work(i: int) -> None:
        torch.set_num_threads(2)
        for _ in range(40):
            if not same(quantizer(tensors[i], key=KEY).elements, expected[i]):
                bad.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    torch.set_num_threads(before)
    assert not bad


def sums() -> str:
    """A fingerprint of quantized tensors; tests compare it between processes."""
    digest = hashlib.sha256()
    for fmt in (int8, formats.e4m3):
        for x in (numbers(2 * team.SMALL + 5), numbers(6, 40)):
            q = Quantizer(format=fmt, rounding=stochastic())(x, key=KEY)
            digest.update(q.elements.numpy().tobytes())
    return digest.hexdigest()


def run(script: str, **environment: str) -> str:
    """Standard output of a script in a fresh interpreter."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_forked_children_and_a_warm_process() -> None:
    script = """
import sys, torch, multiprocessing, warnings
import quantizers
assert "numba" not in sys.modules, "importing quantizers imports numba"
from test_kernels import *
warnings.simplefilter("ignore")  # of the fork, from Python 3.12 on
torch.set_num_threads(2)
parent = sums()
made = kernels.made("quantizers.kernels.compiled_elements", "codes", 0, 1, 5, 1, False)
assert made.cache_hits == 1, "compiled again"
x = numbers(3 * 2**14)
def codes():  # the kernel alone: torch's own operations hang in a forked child on two threads
    own = elements(x, None, None, x.shape, formats.e4m3, stochastic(), KEY)
    return own.numpy().tobytes()
def child(queue, threads):
    if threads == 2:
        queue.put(codes())
    else:
        torch.set_num_threads(1)
        queue.put(sums())
context = multiprocessing.get_context("fork")
queue = context.Queue()
for threads, expected in ((2, codes()), (1, parent)):
    process = context.Process(target=child, args=(queue, threads))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join(60)
class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return numbers(40000, seed=i)
def collate(batch): return Quantizer(format=int8)(torch.stack(batch)).elements
loader = torch.utils.data.DataLoader(
    Data(), 2, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
for i, codes in enumerate(loader):
    x = torch.stack([numbers(40000, seed=2 * i), numbers(40000, seed=2 * i + 1)])
    assert same(codes, eager(Quantizer(format=int8), x).elements)
assert sums() == parent
print(parent)
"""
    assert run(script) == sums()


def test_without_the_threads_runtime_and_without_fp16_instructions() -> None:
    script = """
import torch
from quantizers.kernels import team
team.openmp = lambda: None
torch.set_num_threads(2)
from test_kernels import *
codes = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
check(Quantizer(format=formats.e5m2, range=None), codes)
print(sums())
"""
    expected = sums()
    assert run(script, NUMBA_CPU_NAME="generic") == expected
    kernels.made.cache_clear()
    assert sums() == expected  # what that process left on disk is not for this one


# Falling back -------------------------------------------------------------------------------------


def test_without_numba_there_is_one_warning_and_the_same_bits() -> None:
    script = """
import sys, warnings
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ImportError("blocked " + name)
sys.meta_path.insert(0, Blocker())
import hashlib, torch
from quantizers import *
from quantizers import formats, kernels
SMALL = kernels.team.SMALL
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    digest = hashlib.sha256()
    for fmt in (int8, formats.e4m3):
        for shape in ((2 * SMALL + 5,), (6, 40)):
            x = random_bits(root_key(0), shape).float() / 2**29
            q = Quantizer(format=fmt, rounding=stochastic())(x, key=root_key(1))
            digest.update(q.elements.numpy().tobytes())
assert [w.category for w in caught] == [RuntimeWarning], [str(w.message) for w in caught]
assert "blocked numba" in str(caught[0].message)
print(digest.hexdigest())
"""
    assert run(script) == sums()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Kernels are made anew within the test and after it."""
    monkeypatch.setattr(serving, "_warned", [])
    kernels.made.cache_clear()
    yield
    kernels.made.cache_clear()


def test_kernels_that_do_not_compile_give_one_warning(fresh, monkeypatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no kernel today")

    for module in (compiled_elements, compiled_whole):
        monkeypatch.setattr(module, "quantize", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for fmt in (int8, uint8, formats.e4m3, int8):
            check(Quantizer(format=fmt, range=minmax), wild(30), served=False)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "no kernel today" in str(caught[0].message)


def test_no_place_for_the_cache(fresh, monkeypatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    check(Quantizer(format=int8), wild(30))


def test_the_first_compilation_is_announced_once(fresh, monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled._announce.cache_clear()
    for quantizer in (Quantizer(format=int8), Quantizer(format=uint8)):
        check(quantizer, numbers(50))
    first, *counts = [record.message for record in caplog.records]
    assert "kernels are compiled for this machine" in first
    assert all(count.endswith(" kernels compiled") for count in counts)  # after some seconds
    kernels.made.cache_clear()
    compiled._announce.cache_clear()
    check(quantizer, numbers(50))
    assert [record.message for record in caplog.records] == [first, *counts]  # all are on disk


def test_the_cache_has_a_file_for_each_kernel_and_heals(fresh, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    quantizer = Quantizer(format=int8)

    def hits() -> int:
        kernels.made.cache_clear()
        check(quantizer, numbers(50))
        return kernels.made(
            "quantizers.kernels.compiled_elements", "codes", 0, 1, 0, 1, False
        ).cache_hits

    assert hits() == 0
    data, index = list(tmp_path.rglob("*.nbc")), list(tmp_path.rglob("*.nbi"))
    assert len(data) == len(index) == 3  # with the range, without, and the part of both
    data, index = (
        [path for path in paths if path.name.startswith("compiled_elements.codes")]
        for paths in (data, index)
    )
    stamp = data[0].stat().st_mtime_ns
    assert hits() == 1 and data[0].stat().st_mtime_ns == stamp
    whole = {path: path.read_bytes() for path in (*data, *index)}
    for path, content in whole.items():
        for damaged in (content[: len(content) // 2], bytes(len(content))):
            for each in whole:
                each.write_bytes(whole[each])
            path.write_bytes(damaged)
            assert hits() == 0
    assert hits() == 0 and hits() == 1  # stored again
    check(replace(quantizer, rounding=ceil), numbers(50))
    assert len(list(tmp_path.rglob("*.nbi"))) == 4


# What torch has besides plain tensors -------------------------------------------------------------

NOISY = Quantizer(format=int8, rounding=stochastic())


def test_autograd_inference_and_parameters() -> None:
    x = numbers(6, 8)
    expected = eager(NOISY, x).elements
    parameter = torch.nn.Parameter(x.clone())
    for tensor in (parameter, x.clone().requires_grad_(), parameter * 1):
        q = NOISY(tensor, key=KEY)
        assert same(q.elements, expected) and not q.elements.requires_grad
    floats = Quantizer(format=formats.e4m3)(parameter)
    assert not floats.elements.requires_grad and floats.elements.grad_fn is None
    with torch.inference_mode():
        inside = numbers(6, 8)
        assert same(fused(NOISY, inside, NOISY(inside, key=KEY)), expected)
    assert same(NOISY(inside, key=KEY).elements, expected)


def test_tensors_whose_memory_holds_other_numbers_fall_back() -> None:
    x = numbers(6, 8)

    class Own(Tensor):
        pass

    negative = torch._neg_view(x)
    assert negative.is_neg() and negative.data_ptr() == x.data_ptr()
    check(NOISY, negative, served=False)
    check(NOISY, torch.complex(x, x).conj().imag, served=False)
    check(NOISY, torch.complex(x, x).real, served=False)
    q = NOISY(x.as_subclass(Own), key=KEY)
    assert same(q.elements.as_subclass(Tensor), eager(NOISY, x).elements)
    check(Quantizer(format=int8), x.double(), served=False)
    assert NOISY(x.to("meta"), key=KEY.to("meta")).elements.is_meta
    for wrong in (x.to_sparse(), x.to_mkldnn()):
        errors = []
        for context in (kernels.eager, warnings.catch_warnings):
            with context(), pytest.raises(TypeError, match="dense") as error:
                NOISY(wrong, key=KEY)
            errors.append(error.type)
        assert errors[0] is errors[1]


def test_operands_that_a_kernel_would_misread_fall_back() -> None:
    x, rows = numbers(6, 8), per_axis(0)
    for bad in (KEY.view(1), KEY.to(torch.int32), KEY.expand(1, 1).view(1)):
        assert elements(x, None, None, (6, 8), int8, stochastic(), bad) is None
        for context in (kernels.eager, warnings.catch_warnings):
            with context(), pytest.raises(TypeError, match="key"):
                NOISY(x, key=bad)

    class Odd:
        """A range rule of a user: fp64, or one range for all rows."""

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

        def __call__(self, x, block, *, state=None, training=True):
            bound = x.abs().amax().to(self.dtype)
            return -bound, bound

        def init_state(self, compact):
            return {}

    for dtype in (torch.float64, torch.float32, torch.float16):
        for grain in (per_tensor, rows):
            for fmt in (int8, uint8, formats.e4m3):
                quantizer = Quantizer(format=fmt, granularity=grain, range=Odd(dtype))
                assert same(quantizer(x).elements, eager(quantizer, x).elements)


@pytest.mark.filterwarnings("ignore")  # deprecations in torch, and its tracer's
def test_transforms_modes_and_tracing() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    x, y = numbers(6, 8), numbers(6, 8, seed=5)

    def codes(v: Tensor) -> Tensor:
        return NOISY(v, key=KEY).elements

    def values(v: Tensor) -> Tensor:
        return NOISY(v, key=KEY).dequantize() * v

    expected = eager(NOISY, y).elements
    with kernels.eager():
        rows = torch.stack([codes(row) for row in y])
        grad, tangent = torch.func.grad(lambda v: values(v).sum())(y), values(y)
    assert same(torch.func.vmap(codes)(y), rows)
    assert same(torch.func.functionalize(codes)(y), expected)
    assert same(torch.func.grad(lambda v: values(v).sum())(y), grad)
    assert same(torch.func.jvp(values, (y,), (y,))[1], tangent)
    with pytest.raises(RuntimeError):  # as the eager path: the noise has one key
        torch.func.vmap(lambda k: NOISY(y, key=k).elements)(torch.stack([KEY, KEY + 1]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert type(codes(mode.from_tensor(y))).__name__ == "FakeTensor"
    with FlopCounterMode(display=False):
        assert same(codes(y), expected)
    assert same(make_fx(codes, tracing_mode="real")(x)(y), expected)
    assert same(torch.jit.trace(codes, (x,), check_trace=False)(y), expected)
    with torch.device("meta"):  # a default for new tensors; x and its codes stay where they are
        plain = Quantizer(format=formats.e3m0)(y).elements
    assert same(plain, eager(Quantizer(format=formats.e3m0), y).elements)


# A quantizer in one kernel ------------------------------------------------------------------------

#: those of the int8 recipe: of inputs, of weights (groups, out, in, *kernel), of layer gradients
INPUT = Quantizer(format=uint8, range=ema(minmax, momentum=0.1, train_on="batch"))
WEIGHT = Quantizer(format=int8, granularity=per_axis(0, 1))
GRADIENT = Quantizer(format=int8, rounding=stochastic())


@pytest.fixture
def wholes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every quantization, whether a single kernel did it."""
    served: list[bool] = []
    original = quantize.forms["cpu"]

    def counted(*args):
        found = original(*args)
        served.append(found is not None)
        return found

    monkeypatch.setitem(quantize.forms, "cpu", counted)
    return served


def assert_equal(got: QTensor, expected: QTensor) -> None:
    """Elements, scale and zero point, bit for bit."""
    assert same(got.elements, expected.elements)
    assert got.elements.stride() == torch.empty_like(expected.elements).stride()
    for a, b in ((got.scale, expected.scale), (got.zero_point, expected.zero_point)):
        assert (a is None) == (b is None) and (b is None or same_bits(a, b))
    assert got.block == expected.block and got.format == expected.format


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_int8_recipes_quantizers_take_one_kernel(dtype: torch.dtype, wholes) -> None:
    image, weight = numbers(4, 6, 5, 3).to(dtype), numbers(2, 3, 4, 3, 3).to(dtype)
    state, other = (INPUT.init_state((None, 6, None, None)) for _ in range(2))
    factor = numbers(1, 6, 1, 1, seed=3).abs()
    for x in (image, last(image), image[:, :, ::1], image.transpose(2, 3)):
        with kernels.eager():
            expected = [
                INPUT(x, state=other), GRADIENT(x, key=KEY), GRADIENT(x, key=KEY, factor=factor)
            ]  # fmt: skip
        wholes.clear()
        got = [INPUT(x, state=state), GRADIENT(x, key=KEY), GRADIENT(x, key=KEY, factor=factor)]
        assert wholes == [True, True, True]
        for a, b in zip(got, expected, strict=True):
            assert_equal(a, b)
        assert all(same_bits(state[name], other[name]) for name in state)
    wholes.clear()
    assert_equal(WEIGHT(weight), eager(WEIGHT, weight))
    assert wholes == [True, False]  # the second is the eager path's own


@pytest.mark.parametrize("train_on", ["batch", "running"])
@pytest.mark.parametrize("rule", [minmax, absmax], ids=["minmax", "absmax"])
@pytest.mark.parametrize("momentum", [0.1, 0.37, 1.0])
def test_a_running_range_moves_bit_for_bit(train_on, rule, momentum: float, wholes) -> None:
    """Steps of training with evaluations between them; a non-finite batch leaves the average."""
    for fmt in (uint8, int8, formats.e4m3):
        quantizer = Quantizer(format=fmt, range=ema(rule, momentum, train_on))
        states = [quantizer.init_state((None, 7)) for _ in range(2)]
        for step, bad in enumerate((None, NAN, None, INF, None, -INF, None, None)):
            x = numbers(30, 7, seed=step) * (step + 0.5) + step / 3
            if step == 4:
                x = x.abs() + 1  # a range without 0
            if bad is not None:
                x[3, 2] = bad
            for training in (False, True, False):  # before the first step there is no average
                before = [states[0][name].clone() for name in ("low", "high", "share", "steps")]
                wholes.clear()
                got = quantizer(x, state=states[0], training=training)
                assert wholes == [True]
                with kernels.eager():
                    expected = quantizer(x, state=states[1], training=training)
                assert_equal(got, expected)
                after = [states[0][name] for name in ("low", "high", "share", "steps")]
                moved = training and bad is None
                assert all(same_bits(a, b) for a, b in zip(after, before, strict=True)) != moved
                assert got.scale is not None
                assert got.scale.isfinite().all() == (bad is None)
                assert all(same_bits(states[0][n], states[1][n]) for n in states[0])
        assert states[0]["steps"] == 5


def test_the_first_bad_batch_does_not_start_the_average(wholes) -> None:
    states = [INPUT.init_state((None, 3)) for _ in range(2)]
    for x in (torch.full((4, 3), NAN), numbers(4, 3)):
        got = INPUT(x, state=states[0])
        with kernels.eager():
            assert_equal(got, INPUT(x, state=states[1]))
    assert wholes[0] and states[0]["steps"] == 1
    assert states[0]["low"].item() == min(x.min().item(), 0) or states[0]["low"] == x.min()
    assert all(same_bits(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [*itertools.product([int8], DTYPES), (uint8, BRAIN), (INT16, SINGLE), (formats.e4m3, HALF)],
    ids=str,
)
def test_factors_of_every_shape(fmt, dtype: torch.dtype, wholes) -> None:
    shapes = ((4, 6, 5, 3), (40,), (3, 5, 8), (2, 3, 1, 1))
    x, flat, deep, pixels = (numbers(*shape).to(dtype) for shape in shapes)
    cases = [
        (x, (1, 6, 1, 1), True), (last(x), (1, 6, 1, 1), True), (x, (4, 1, 1, 1), True),
        (last(x), (4, 6, 1, 1), True), (x, (1, 1, 1, 1), True), (x, (1, 1, 5, 3), True),
        (last(x), (1, 1, 1, 3), True), (x, (6, 1, 1), False), (flat, (40,), True),
        (flat, (1,), True),
        (flat.view(8, 5), (5,), False), (deep, (1, 1, 8), True), (deep, (3, 1, 8), True),
        (deep.transpose(0, 2), (1, 5, 1), True), (deep[:, :, ::2], (1, 1, 4), False),
        (pixels, (1, 3, 1, 1), True),
    ]  # fmt: skip
    for rounding in (nearest_even, stochastic()):
        for rule in (absmax, minmax):
            quantizer = Quantizer(format=fmt, range=rule, rounding=rounding)
            for i, (values, shape, served) in enumerate(cases):
                factor = wild(*shape, seed=i).nan_to_num(1.0, 2.0, 0.5)
                spread = torch.stack([factor, factor], -1)[..., 1]
                for own in (factor, spread):
                    wholes.clear()
                    got = quantizer(values, key=KEY, factor=own)
                    assert wholes == [served], (tuple(values.shape), shape)
                    with kernels.eager():
                        assert_equal(got, quantizer(values, key=KEY, factor=factor))
                assert_equal(got, eager(quantizer, values * factor))


def test_a_factor_that_is_not_finite_or_does_not_fit() -> None:
    x = numbers(4, 6)
    for bad in (NAN, INF, 0.0):
        factor = torch.tensor([[1.0, 2, bad, 1, 1, 1]])
        got = GRADIENT(x, key=KEY, factor=factor)
        assert_equal(got, eager(GRADIENT, x * factor))
    for shape in ((1, 5), (4, 6, 1, 2), (3, 1)):
        for context in (warnings.catch_warnings, kernels.eager):
            with context(), pytest.raises((RuntimeError, ValueError)):
                GRADIENT(x, key=KEY, factor=torch.ones(shape))
    for quantizer in (replace(GRADIENT, granularity=per_axis(0)), GRADIENT):
        for context in (kernels.eager, warnings.catch_warnings):
            with context(), pytest.raises(TypeError, match="factor"):
                quantizer(x, key=KEY, factor=torch.rand(1, 6).half())


def test_one_kernel_on_any_number_of_threads(wholes) -> None:
    before = torch.get_num_threads()
    x, factor = numbers(5, 7, 40, 41), numbers(1, 7, 1, 1, seed=1)
    try:
        for values in (x, last(x)):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                states = [INPUT.init_state((None, 7, None, None)) for _ in range(2)]
                wholes.clear()
                got = INPUT(values, state=states[0]), GRADIENT(values, key=KEY, factor=factor)
                got = (*got, WEIGHT(x))
                assert wholes == [True] * 3
                with kernels.eager():
                    expected = (
                        INPUT(values, state=states[1]),
                        GRADIENT(values, key=KEY, factor=factor),
                    )
                    expected = (*expected, WEIGHT(x))
                for a, b in zip(got, expected, strict=True):
                    assert_equal(a, b)
                assert all(same_bits(states[0][name], states[1][name]) for name in states[0])
    finally:
        torch.set_num_threads(before)


def test_states_that_a_kernel_may_not_write_fall_back(wholes) -> None:
    x = numbers(6, 8)
    with kernels.eager():
        expected = INPUT(x, state=INPUT.init_state((None, 8)))
    for change in (
        lambda state: state.update(low=state["low"].double(), high=state["high"].double()),
        lambda state: state.update(steps=state["steps"].to(torch.int32)),
        lambda state: state.update(low=torch._neg_view(state["low"])),
    ):
        state = INPUT.init_state((None, 8))
        change(state)
        wholes.clear()
        got = INPUT(x, state=state)
        assert wholes == [False] and same(got.elements, expected.elements)
        assert state["steps"] == 1 and state["low"].item() == pytest.approx(x.min().item())
    with pytest.raises(ValueError, match="needs state"):
        INPUT(x)
    rows = Quantizer(format=int8, granularity=per_axis(0), range=ema(minmax))
    states = [rows.init_state((6, 8)) for _ in range(2)]
    wholes.clear()
    got = rows(x, state=states[0])
    with kernels.eager():
        assert_equal(got, rows(x, state=states[1]))
    assert wholes == [False, False]  # a running range for each row


def test_batched_gradients_are_not_plain() -> None:
    x, seen = numbers(6, 8).requires_grad_(), []
    y = x * 1
    y.register_hook(lambda grad: seen.append(kernels.serves(grad)))
    torch.autograd.grad(y, x, numbers(2, 6, 8, seed=1), retain_graph=True, is_grads_batched=True)
    torch.autograd.grad(y, x, numbers(6, 8, seed=1))
    assert seen == [False, True]


# Elements less their zero point -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32], ids=str)
def test_unshifted_elements(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    ends = torch.tensor([info.min, info.max, 0, 1, 2**24 + 1 if info.bits == 32 else 3])
    x = torch.cat([ends, random_bits(KEY, (4 * 6 * 5 * 3 - 5,)).long()])
    x = x.remainder(2**info.bits).sub(-info.min).to(dtype) if info.min else x.to(dtype)
    x = x.view(4, 6, 5, 3)
    zeros = [None, *(torch.tensor([[v]], dtype=torch.int32) for v in (0, 128, -7, 2**20))]
    zeros.append(torch.tensor([5, 9, 13], dtype=torch.int32)[1])
    for values in (x, last(x), x.transpose(0, 3), x[1:3], x[:0], x[:, 1:4], x[..., ::2]):
        dense = values.numel() > 0 and kernels.is_dense(values)
        for zero in zeros:
            got = unshifted(values, zero)
            assert (got is not None) == dense
            expected = values.float() if zero is None else values.float() - zero.reshape(()).float()
            if got is not None:
                assert same_bits(got, expected) and got.stride() == values.stride()
            if zero is None or zero.dim():
                grid = None if zero is None else zero.reshape(1, 1, 1, 1)
                q = QTensor(values, None, grid, None, tuple(max(n, 1) for n in values.shape))
                assert same_bits(q.unshifted(), expected)


def test_what_unshifted_leaves_to_torch() -> None:
    x = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert unshifted(x, torch.zeros(3, 1, dtype=torch.int32)) is None
    assert unshifted(x, torch.zeros(1, 1, dtype=torch.int64)) is None
    assert unshifted(x.long(), None) is None
    assert unshifted(x.float(), None) is None
    with kernels.eager():
        assert unshifted(x, None) is None
    rows = torch.tensor([[1], [2], [3]], dtype=torch.int32)
    q = QTensor(x, torch.ones(3, 1), rows, uint8, (1, 4))
    assert torch.equal(q.unshifted(), x.float() - rows)
