"""Triton's quantizer in blocks has the bits of the eager path: elements, scales of both levels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from quantizers import (
    FloatFormat,
    Granularity,
    IntFormat,
    Quantizer,
    Scale,
    absmax,
    blocks,
    ceil,
    e2m1,
    e4m3,
    e5m2,
    e8m0,
    minmax,
    nearest_even,
    nf4,
    root_key,
    stochastic,
)
from quantizers.devices.by_device import spec
from quantizers.devices.memory import eager
from quantizers.formats import Format
from quantizers.kernels.gpu import quantizers as kernels
from quantizers.kernels.gpu.blocks import whole as planned
from quantizers.kernels.gpu.rules import _threshold
from quantizers.scales.powers import edge_of
from quantizers.scales.rules import level

# the interpreter computes by numpy, which warns of infinities
pytestmark = [
    served,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*clip"),
]


def wide(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(4).exp()


def odd() -> Tensor:
    x = wide(2, 5, 40)
    x[0, 3, 5], x[1, 2, 39], x[0, 1], x[1, 4, :8] = float("nan"), float("inf"), 0.0, -0.0
    return x


INPUTS = {
    "matrices": wide(2, 9, 70),
    "turned": wide(2, 33, 12).mT,
    "not finite": odd(),
    "bf16": wide(3, 40).bfloat16(),
    "a vector": wide(70),
    "batches": wide(2, 2, 3, 33),
    "huge": (wide(4, 33) * 1e36).clamp(-3.4e38, 3.4e38),
    "subnormal": wide(4, 33) * 1e-41,
    # amax on both sides of every edge between two powers
    "edges": torch.tensor([[m * 2.0**e] for m in (1, 1.5, 1.75, 1.875, 1.9999999) for e in (0, 7)]),
}
SCALES = (
    Scale(), Scale(e8m0, rule="rceil"), Scale(e8m0, rule="ocp_floor"), Scale(e8m0),
    Scale(e8m0, rule="ocp_ceil"), Scale(e8m0, rule="even"), Scale(e4m3, headroom=17 / 16),
    Scale(e8m0, rule="rceil", headroom=12 / 7), Scale(e8m0, rounding=ceil),
    Scale(FloatFormat(5, 0, specials="finite"), rule="rceil"), Scale(top=4.0),
    Scale(e4m3, over=Scale(top=448)), Scale(e4m3, over=Scale(top=448), reciprocal=True),
    Scale(reciprocal=True), Scale(e8m0, reciprocal=True), Scale(prescale=0.75, reciprocal=True),
    Scale(e8m0, rule="ocp_floor", prescale=0.75), Scale(e4m3, over=Scale(top=448), prescale=0.75),
    Scale(e4m3, over=Scale(top=448, headroom=17 / 16), headroom=12 / 7, reciprocal=True),
    Scale(e4m3, over=Scale(top=256), candidates=(6, 4)), Scale(candidates=(4, 6, 5), by="mae"),
    Scale(e4m3, over=Scale(top=256), candidates=(4, 6), reciprocal=True, headroom=17 / 16),
    Scale(reciprocal=True, candidates=(6, 4), prescale=0.75),
)  # fmt: skip
FORMATS: tuple[tuple[Format, Granularity], ...] = (
    (e4m3, blocks(32)), (e2m1, blocks(16, 4)), (IntFormat(8), blocks(None)), (e5m2, blocks(7, 3)),
    (IntFormat(4, signed=False), blocks(32)),
)  # fmt: skip


def check(x: Tensor, by: Quantizer) -> None:
    key = root_key(3)
    with eager():
        want = by(x, key=key)
    got = kernels.whole(x.to(DEVICE), by, None, key.to(DEVICE), True)
    assert got is not None and got.block == want.block
    assert same(got.elements, want.elements) and same(got.scale, want.scale)
    assert same(got.outer, want.outer)
    assert got.elements.stride() == want.elements.stride()


@pytest.mark.parametrize("headroom", [1.0, 17 / 16, 12 / 7, 0.3, 2.0, 1.9999999, 448.0])
@pytest.mark.parametrize("rule", ["ocp_floor", "ocp_ceil", "even", "rceil"])
def test_where_a_power_of_two_becomes_the_next(rule: Any, headroom: float) -> None:
    """A few numbers below the threshold and above it, and both ends of a binade."""
    for format in (e4m3, e2m1, IntFormat(8)):
        scale = Scale(e8m0, rule=rule, headroom=headroom)
        top = scale.tops(format)[0]
        beyond, ahead = _threshold(headroom, *edge_of(top, format, scale))
        for near in (0, beyond, 2**23 - 1):
            for fraction in range(max(near - 2, 0), min(near + 3, 2**23)):
                amax = torch.tensor(1 + fraction * 2.0**-23)
                want = level(amax, amax, top, format, scale, None)
                assert want == 2.0 ** (ahead + (fraction >= beyond))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_scales(scale: Scale, name: str) -> None:
    format, granularity = FORMATS[(SCALES.index(scale) + list(INPUTS).index(name)) % len(FORMATS)]
    if INPUTS[name].dim() == 1 or (scale.candidates and granularity == blocks(None)):
        granularity = blocks(32)
    for rounding, rule in ((nearest_even, absmax), (stochastic(), minmax)):
        signed = format.signed or rule is absmax
        check(
            INPUTS[name],
            Quantizer(
                format=format, granularity=granularity, scale=scale, rounding=rounding,
                range=rule if signed else absmax,
            ),
        )  # fmt: skip


@pytest.mark.parametrize(("format", "granularity"), FORMATS, ids=[f"{f}, {g}" for f, g in FORMATS])
def test_formats(format: Format, granularity: Granularity) -> None:
    for x, scale in itertools.product((INPUTS["matrices"], INPUTS["not finite"]), SCALES[:2]):
        check(x, Quantizer(format=format, granularity=granularity, scale=scale))


@pytest.mark.parametrize("turned", [False, True])
def test_blocks_that_are_whole(turned: bool) -> None:
    """Of which the kernel knows where they lie."""
    x = wide(2, 32, 64).mT if turned else wide(2, 32, 64)
    for format, scale in ((e4m3, SCALES[2]), (e2m1, SCALES[11]), (IntFormat(8), Scale())):
        by = Quantizer(
            format=format, granularity=blocks(32), scale=scale,
            rounding=stochastic() if format == e2m1 else nearest_even,
        )  # fmt: skip
        check(x, by)
        made = planned(x.dtype, x.shape, x.stride(), spec(by))
        assert made is not None and made.launch.constants["UNIT"] == 16


@pytest.mark.parametrize(
    "format", [e4m3, e5m2, e2m1, FloatFormat(3, 2, specials="finite")], ids=str
)
def test_nearest_of_every_number(format: FloatFormat) -> None:
    """Of 16 bits, and its neighbours in fp32: ties and both sides of them."""
    bits = torch.arange(0, 2**31, 2**16, dtype=torch.int64)
    x = (
        torch.cat([(bits + by).clamp(min=0) for by in (-1, 0, 1)])
        .to(torch.int32)
        .view(torch.float32)
    )
    x = x[x <= format.largest][::3]
    x = torch.cat([x, -x])[: len(x) * 2 // 31 * 31].view(-1, 31)
    x = torch.cat([x, torch.full((len(x), 1), format.largest)], 1)  # so that scales are 1
    check(x, Quantizer(format=format, granularity=blocks(32)))


def test_what_no_kernel_serves_is_declined() -> None:
    x, key = wide(4, 64).to(DEVICE), root_key(1).to(DEVICE)
    drawn, rows = Scale(e4m3, rounding=stochastic()), Scale(top=448, granularity=blocks(None))
    best = Scale(e4m3, over=Scale(top=256), candidates=(6, 4), by="cosine")
    tried = Scale(candidates=(6, 4))  # errors are added up as 6 and 6
    corrected = Scale(e4m3, correction=blocks(32))
    affine = IntFormat(8, signed=False, symmetric=False)
    for by, like in (
        (Quantizer(format=e2m1, granularity=blocks(16), scale=Scale(e4m3, over=rows)), x),
        (Quantizer(format=e2m1, granularity=blocks(16), scale=best), x),
        (Quantizer(format=e2m1, granularity=blocks(16), scale=corrected), x),
        (Quantizer(format=e2m1, granularity=blocks(12), scale=tried), x),
        (Quantizer(format=e2m1, granularity=blocks(16), scale=drawn), x),
        (Quantizer(format=nf4, granularity=blocks(16)), x),
        (Quantizer(format=affine, granularity=blocks(16), range=minmax), x),
        (Quantizer(format=IntFormat(4, signed=False), granularity=blocks(16), range=minmax), x),
        (Quantizer(format=e4m3, granularity=blocks(16)), x.double()),
        (Quantizer(format=e4m3, granularity=blocks(16)), x[:0]),
        (Quantizer(format=e4m3, granularity=blocks(16)), wide(2, 5, 2, 8).to(DEVICE)[:, ::3]),
    ):  # fmt: skip
        assert kernels.whole(like, by, None, key, True) is None
