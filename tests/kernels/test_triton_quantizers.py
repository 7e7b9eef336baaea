"""Triton quantizers have the bits of the eager path: elements, scales, zero points, states."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

import quantizers
from experiments.gpu.checks import same
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    Scale,
    absmax,
    bf16,
    e4m3,
    e5m2,
    e8m0,
    ema,
    fp16,
    history,
    minmax,
    noise,
    per_axis,
    per_tensor,
    qtensor,
    root_key,
    stochastic,
)
from quantizers.devices.memory import eager
from quantizers.elements import elements_of
from quantizers.kernels.gpu import elements, extremes, keys, values
from quantizers.kernels.gpu import quantizers as kernels

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def with_(value: float, at: int = 0) -> Tensor:
    x = normal(4, 33)
    x.view(-1)[at] = value
    return x


INPUTS = {
    "3 axes": normal(3, 5, 7),
    "channels last": normal(2, 6, 5, 4).contiguous(memory_format=torch.channels_last),
    "several blocks": normal(5, 1500),
    "transposed": normal(9, 11).t(),
    "strided": normal(6, 10, 4)[:, ::2],
    "0-d": torch.tensor(-3.5),
    "inf": with_(float("inf")),
    "-inf": with_(-float("inf"), 40),
    "NaN": with_(float("nan"), 131),
    "-NaN": with_(-float("nan"), 17),
    "zeros": torch.zeros(3, 4),
    "-0": -torch.zeros(3, 4),
    "subnormal": normal(4, 33) * 1e-42,
    "huge": (normal(4, 33) * 1e38).clamp(-3.4e38, 3.4e38),
    "fp16": normal(4, 33).half(),
    "bf16": normal(4, 33).bfloat16(),
    "ties": torch.arange(-64, 64).float().view(4, 32) / 4,
    "negative": -normal(4, 33).abs(),
}
FORMATS = (
    IntFormat(8),
    IntFormat(8, signed=False, symmetric=False),
    IntFormat(4, signed=False),
    IntFormat(16),
    IntFormat(16, signed=False, symmetric=False),
    fp16,
    bf16,
    e4m3,
    e5m2,
    e8m0,
    FloatFormat(2, 1, specials="finite"),
    FloatFormat(8, 3),
    FloatFormat(5, 2, bias=145),  # below fp32's normal numbers
)
ROUNDINGS = (
    *(getattr(quantizers, name) for name in ("nearest_even", "half_away", "toward_zero")),
    *(getattr(quantizers, name) for name in ("floor", "ceil")),
    stochastic(),
    stochastic(4),
)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_a_whole_quantizer(name: str, format: IntFormat | FloatFormat) -> None:
    x, tried = INPUTS[name], 0
    rules = (absmax, minmax, ema(minmax), ema(absmax, train_on="batch"))
    for n, rounding in enumerate(ROUNDINGS):
        if format in (bf16, FloatFormat(8, 3), e8m0):
            continue  # too wide to be scaled to
        granularity = per_axis(0) if x.dim() and n % 3 == 2 else per_tensor
        rule = rules[n % 4] if granularity == per_tensor else rules[n % 2]
        by = Quantizer(format=format, range=rule, granularity=granularity, rounding=rounding)
        key, state = root_key(n), by.init_state(x.shape)
        moved = {part: value.to(DEVICE, copy=True) for part, value in state.items()}
        got = kernels.whole(x.to(DEVICE), by, moved or None, key.to(DEVICE), True)
        if got is None:
            assert granularity != per_tensor, "not served"
            continue
        with eager():
            want = by(x, state=state or None, key=key)
        assert same(got.elements, want.elements), (rounding, granularity)
        assert same(got.scale, want.scale) and same(got.zero_point, want.zero_point)
        assert all(same(moved[part], value) for part, value in state.items())
        assert got.elements.stride() == want.elements.stride() and got.block == want.block
        tried += 1
    assert tried or format in (bf16, FloatFormat(8, 3), e8m0)


@pytest.mark.parametrize("format", [f for f in FORMATS if isinstance(f, FloatFormat)], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_elements_without_a_scale(name: str, format: FloatFormat) -> None:
    x = INPUTS[name]
    for n, rounding in enumerate(ROUNDINGS):
        by = Quantizer(format=format, range=None, rounding=rounding)
        key = root_key(n)
        with eager():
            want = by(x, key=key)
        got = kernels.elements(
            x.to(DEVICE), None, None, tuple(x.shape), format, rounding, key.to(DEVICE)
        )
        assert got is not None and same(got, want.elements), rounding


def test_a_factor_and_an_evaluation() -> None:
    x = normal(4, 6, 5, 3)
    factor = normal(1, 6, 1, 1).abs()
    by = Quantizer(format=IntFormat(8), range=ema(absmax), rounding=stochastic())
    state, key = by.init_state(x.shape), root_key(3)
    moved = {part: value.to(DEVICE, copy=True) for part, value in state.items()}
    for training in (True, True, False):
        with eager():
            want = by(x, state=state, key=key, training=training, factor=factor)
        got = kernels.whole(x.to(DEVICE), by, moved, key.to(DEVICE), training, factor.to(DEVICE))
        assert got is not None
        assert same(got.elements, want.elements) and same(got.scale, want.scale)
        assert all(same(moved[part], value) for part, value in state.items())


LARGE = {
    "tensor": (normal(5, 3001), per_tensor),
    "axis": (normal(3, 9001), per_axis(0)),
    "channels last": (
        normal(2, 6, 35, 34).contiguous(memory_format=torch.channels_last),
        per_tensor,
    ),
    "units of channels": (
        normal(2, 32, 19, 15).contiguous(memory_format=torch.channels_last),
        per_tensor,
    ),
}


@pytest.mark.parametrize("programs", [(512, 2048), (2, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_granules_that_several_programs_share(
    name: str, programs: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extremes, "PARTS", programs[0])
    monkeypatch.setattr(extremes, "MAKERS", programs[1])
    extremes.whole.cache_clear()
    x, granularity = LARGE[name]
    factor = normal(1, x.shape[1], *[1] * (x.dim() - 2)).abs()
    unsigned = IntFormat(8, signed=False, symmetric=False)
    for format, rule in ((unsigned, minmax), (IntFormat(8), absmax), (e5m2, absmax)):
        for folded, remembers in itertools.product((False, True), repeat=2):
            if granularity != per_tensor and (folded or remembers):
                continue
            by = Quantizer(
                format=format, range=ema(rule) if remembers else rule, granularity=granularity,
                rounding=stochastic(),
            )  # fmt: skip
            state, key = by.init_state(x.shape), root_key(3)
            moved = {part: value.to(DEVICE, copy=True) for part, value in state.items()}
            for scale in (1.0, 3.0) if remembers else (1.0,):
                times = factor if folded else None
                with eager():
                    want = by(x * scale, state=state or None, key=key, factor=times)
                got = kernels.whole(
                    (x * scale).to(DEVICE), by, moved or None, key.to(DEVICE), True,
                    None if times is None else times.to(DEVICE),
                )  # fmt: skip
                assert got is not None
                assert same(got.elements, want.elements) and same(got.scale, want.scale)
                assert same(got.zero_point, want.zero_point)
                assert all(same(moved[part], value) for part, value in state.items())
    extremes.whole.cache_clear()


@pytest.mark.parametrize("channels, unit", [(32, 16), (24, 1)])
def test_elements_of_a_row_share_their_place(channels: int, unit: int) -> None:
    x, format = normal(2, channels, 3, 5), IntFormat(8)
    for layout in (torch.channels_last, torch.contiguous_format):
        laid = x.contiguous(memory_format=layout)
        found = elements.elements(
            torch.float32, (*x.shape,), laid.stride(), (*x.shape,), format, stochastic(), True,
            False,
        )  # fmt: skip
        assert found is not None
        assert found.launch.constants["UNIT"] == (unit if layout is torch.channels_last else 1)
        given = laid, torch.full((1, 1, 1, 1), 0.03), None, (*x.shape,), format, stochastic()
        with eager():
            want = elements_of(*given, root_key(1))
        there = (part.to(DEVICE) if isinstance(part, Tensor) else part for part in given)
        got = kernels.elements(*there, root_key(1).to(DEVICE))
        assert got is not None and same(got, want)


def test_extremes_are_those_of_the_tensors_own_elements() -> None:
    """Not of what lies between them in memory, which is read from its start to its end only where
    the tensor fills it."""
    whole = torch.full((130, 200), 1e6)
    whole[:, :100] = normal(130, 100)
    by, key, x = Quantizer(format=IntFormat(8), rounding=stochastic()), root_key(3), whole[:, :100]
    assert x.numel() > extremes.SMALL
    with eager():
        want = by(x, key=key)
    got = kernels.whole(whole.to(DEVICE)[:, :100], by, None, key.to(DEVICE), True)
    assert got is not None
    assert same(got.elements, want.elements) and same(got.scale, want.scale)


def test_what_no_kernel_serves_is_declined() -> None:
    x, by = normal(4, 6).to(DEVICE), Quantizer(format=IntFormat(8), range=ema(absmax))
    state = {
        name: part.double() if part.is_floating_point() else part
        for name, part in by.init_state(x.shape).items()
    }
    assert kernels.whole(x, by, {n: v.to(DEVICE) for n, v in state.items()}, None, True) is None
    plain = Quantizer(format=IntFormat(8))
    wide = torch.ones(1, 6, dtype=torch.float64, device=DEVICE)
    assert kernels.whole(x, plain, None, None, True, wide) is None
    assert kernels.whole(x.double(), plain, None, None, True) is None
    assert kernels.whole(x, plain, None, None, True) is not None
    for rule in (ema(absmax, use="previous"), history(4)):
        past = Quantizer(format=IntFormat(8), range=rule)
        state = {n: v.to(DEVICE) for n, v in past.init_state(x.shape).items()}
        assert kernels.whole(x, past, state, None, True) is not None
        assert kernels.whole(x, past, None, None, True) is None
        for part in ("low", *(("lows",) if "lows" in state else ())):
            wide = {**state, part: state[part].expand(2, *state[part].shape)}
            assert kernels.whole(x, past, wide, None, True) is None
    past = Quantizer(format=IntFormat(8), range=history(5000))
    state = {n: v.to(DEVICE) for n, v in past.init_state(x.shape).items()}
    assert kernels.whole(x, past, state, None, True) is None
    best, rows = Scale(candidates=(6, 4)), Scale(e4m3, over=Scale(top=448))
    assert kernels.whole(x, Quantizer(format=e4m3, scale=best), None, None, True) is None
    by = Quantizer(format=e4m3, scale=rows, granularity=per_axis(0))
    assert kernels.whole(x, by, None, None, True) is None
    for step, fits in ((2**29, True), (2**30, False)):  # places beyond int32
        far = (3, 4), (step, 1), (1, 4), IntFormat(8), quantizers.nearest_even, True, False
        assert (elements.elements(torch.float32, *far) is not None) is fits


def test_keys() -> None:
    for key, value in itertools.product((0, 1, -1, 2**63 - 1), (0, 1, -7, 2**31, -(2**63))):
        start = torch.tensor(key)
        want = noise.fold(start, value)
        got = keys.fold(start.to(DEVICE), value)
        assert got is not None and same(got, want)
        there = torch.tensor(value, device=DEVICE)
        loaded = keys.fold(start.to(DEVICE), there)
        assert loaded is not None and same(loaded, want)
        more = keys.fold(start.to(DEVICE), there, advance=True)
        assert int(there) == value + 1
        assert more is not None and same(more, noise.fold(start, value + 1))
    for value in (2**63, 2**64 + 5, -(2**63) - 1):  # modulo 2^64
        beyond = keys.fold(start.to(DEVICE), value)
        assert beyond is not None and same(beyond, noise.fold(start, value))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_unshifted(dtype: torch.dtype) -> None:
    x = torch.arange(5000).to(dtype).view(50, 100).t()
    for zero_point in (None, torch.tensor(7, dtype=torch.int32)):
        got = values.unshifted(x.to(DEVICE), None if zero_point is None else zero_point.to(DEVICE))
        assert got is not None and got.stride() == x.stride()
        assert same(got, x.float() - (0 if zero_point is None else zero_point))


def test_values_of_what_is_learned_are_torchs() -> None:
    scale = torch.tensor(0.5, device=DEVICE, requires_grad=True)
    codes = torch.arange(6, dtype=torch.int8, device=DEVICE)
    assert values.values(codes, scale, None, True) is None
    assert values.values(codes.float().requires_grad_(), scale.detach(), None, True) is None
    with torch.no_grad():
        assert values.values(codes, scale, None, True) is not None


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float32])
def test_values(dtype: torch.dtype, limited: bool) -> None:
    x = torch.arange(-2500, 2500).clamp(-128, 127).to(dtype).view(50, 100).t()
    if dtype is torch.float32:
        x[0, 0], x[0, 1] = float("inf"), float("nan")
    shift = torch.tensor(7, dtype=torch.int32)
    for zero_point in (None, shift) if dtype is torch.int8 else (None,):
        for number in (0.3, 1e38, -1e-42, float("inf"), float("nan"), 0.0):
            scale = torch.tensor(number)
            with eager():
                want = qtensor.values(x, scale, zero_point, limited)
            moved = [None if t is None else t.to(DEVICE) for t in (scale, zero_point)]
            got = values.values(x.to(DEVICE), *moved, limited)
            assert got is not None and same(got, want), number
