"""Triton quantizers have the eager bits: every rule of a tensor's scale, ranges from before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    Scale,
    absmax,
    ceil,
    chunked_minmax,
    e4m3,
    e5m2,
    e8m0,
    ema,
    history,
    minmax,
    nearest_even,
    per_axis,
    per_tensor,
    root_key,
    stochastic,
)
from quantizers.devices.memory import eager
from quantizers.elements import elements_of
from quantizers.formats import Format
from quantizers.kernels.gpu import quantizers as kernels
from quantizers.ranges.rules import ChunkedMinMax, RangeRule

# the interpreter computes by numpy, which warns of infinities
pytestmark = [
    served,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*clip"),
]
AFFINE = IntFormat(8, signed=False, symmetric=False)
FORMATS: tuple[Format, ...] = e4m3, e5m2, IntFormat(8), IntFormat(4, signed=False)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def with_(*values: float) -> Tensor:
    x = normal(4, 33)
    x.view(-1)[: len(values)] = torch.tensor(values)
    return x


INPUTS = {
    "small": normal(4, 33),
    "two launches": normal(3, 3001),
    "bf16": normal(4, 33).bfloat16(),
    "not finite": with_(float("nan"), float("-inf")),
    "zeros": -torch.zeros(3, 4),
    "subnormal": normal(4, 33) * 1e-41,
    "huge": (normal(4, 33) * 1e38).clamp(-3.4e38, 3.4e38),
    "a power": with_(8.0).clamp(max=8.0),
}
SCALES = (
    Scale(reciprocal=True), Scale(e8m0), Scale(e8m0, rule="rceil"), Scale(e8m0, rule="ocp_floor"),
    Scale(e8m0, rule="even"), Scale(e8m0, rounding=ceil), Scale(top=100, reciprocal=True),
    Scale(top=100), Scale(headroom=1.5), Scale(e4m3), Scale(prescale=0.75),
    Scale(e8m0, rule="ocp_floor", prescale=0.75, reciprocal=True), Scale(prescale=1.5),
    Scale(FloatFormat(5, 0, specials="finite"), rule="rceil"), Scale(e4m3, over=Scale(top=448)),
    Scale(e4m3, over=Scale(top=448), reciprocal=True, headroom=17 / 16),
)  # fmt: skip


def check(x: Tensor, by: Quantizer, factor: Tensor | None = None) -> None:
    key = root_key(3)
    times = None if factor is None else factor.to(DEVICE)
    got = kernels.whole(x.to(DEVICE), by, None, key.to(DEVICE), True, times)
    with eager():
        want = by(x, key=key, factor=factor)
    assert got is not None and got.block == want.block
    assert same(got.scale, want.scale) and same(got.outer, want.outer)
    assert same(got.zero_point, want.zero_point) and same(got.elements, want.elements)
    assert got.elements.stride() == want.elements.stride()


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_scales(name: str, scale: Scale) -> None:
    x = INPUTS[name]
    format = FORMATS[(SCALES.index(scale) + list(INPUTS).index(name)) % len(FORMATS)]
    by = Quantizer(format=format, scale=scale)
    check(x, by)
    check(x, Quantizer(format=e4m3, range=minmax, scale=scale, rounding=stochastic()))
    if scale.over is None and name != "two launches":
        check(x, Quantizer(format=format, scale=scale, granularity=per_axis(0)))
        check(x, by, normal(1, x.shape[1]).abs())


@pytest.mark.parametrize("scale", [Scale(e8m0), Scale(e8m0, rounding=ceil), Scale(e4m3)], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_affine_scales(name: str, scale: Scale) -> None:
    for granularity in (per_tensor, per_axis(0)):
        by = Quantizer(format=AFFINE, range=minmax, scale=scale, granularity=granularity)
        check(INPUTS[name], by)


RULES = (
    ema(minmax, use="previous"), ema(absmax, momentum=0.3, use="previous"), history(3),
    history(1, "last", absmax), history(4, "last"), history(5, "max", absmax), ema(minmax),
    ema(chunked_minmax(), use="previous"), history(2, "max", chunked_minmax()),
)  # fmt: skip


#: what tensors are multiplied with, and whether in training
STEPS = (
    (0.0, True), (1.0, True), (5.0, False), (5.0, True), (float("nan"), True), (0.2, True),
    (0.0, True), (0.1, False), (0.1, True),
)  # fmt: skip


@pytest.mark.parametrize(("format", "size"), [(e4m3, 33), (AFFINE, 33), (e4m3, 3001)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_ranges_from_before(rule: RangeRule, format: Format, size: int) -> None:
    chunked = isinstance(getattr(rule, "rule", None), ChunkedMinMax)
    by = Quantizer(
        format=format, range=rule, scale=Scale(reciprocal=format is e4m3 and not chunked),
        rounding=nearest_even if format is e4m3 else stochastic(),
    )  # fmt: skip
    state = by.init_state((4, size))
    moved = {name: part.to(DEVICE, copy=True) for name, part in state.items()}
    for n, (times, training) in enumerate(STEPS):
        x, key = normal(4, size) * times + (times == 5.0), root_key(n)
        got = kernels.whole(x.to(DEVICE), by, moved, key.to(DEVICE), training)
        with eager():
            want = by(x, state=state, key=key, training=training)
        assert got is not None
        assert same(got.scale, want.scale) and same(got.zero_point, want.zero_point), n
        assert same(got.elements, want.elements), n
        assert all(same(moved[name], part) for name, part in state.items()), (n, state, moved)


def test_elements_by_a_given_factor() -> None:
    x = INPUTS["not finite"]
    for block, shape in (((4, 33), (1, 1)), ((1, 33), (4, 1))):
        scale = torch.full(shape, 3.3)
        for number in (3.3, 0.0, 3e38, float("inf")):
            scale[0, 0] = number
            args = None, block, e4m3, stochastic()
            key = root_key(1)
            got = kernels.elements(x.to(DEVICE), scale.to(DEVICE), *args, key.to(DEVICE), True)
            with eager():
                want = elements_of(x, scale, *args, key, True)
            assert got is not None and same(got, want)
