"""A scale as a value: what is refused, what warns, and where it travels."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from quantizer_checks import same_bits

import quantizers
from quantizers import (
    ClippingScaleWarning,
    Format,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    absmax,
    bf16,
    blocks,
    ceil,
    chunked_minmax,
    e2m1,
    e3m0,
    e4m3,
    e5m2,
    e8m0,
    ema,
    floor,
    fp32,
    half_away,
    int8,
    nearest_even,
    per_axis,
    per_tensor,
    per_token,
    percentile,
    random_bits,
    rms,
    root_key,
    stochastic,
    toward_zero,
    uint8,
)
from quantizers.devices.by_device import restored, spec
from quantizers.kernels.quantize import whole
from quantizers.protocol import needs_key, quantized
from quantizers.scales.clipping import reached

NVFP4 = Scale(e4m3, over=Scale(fp32, top=448))
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"format": int8}, "scale.format"),
    ({"format": e8m0, "rule": "ocp"}, "scale.rule"),
    ({"format": e4m3, "rule": "rceil"}, "powers of two"),
    ({"rule": "ocp_floor"}, "Scale\\(e8m0, rule='ocp_floor'\\)"),
    ({"format": e8m0, "rule": "rceil", "rounding": ceil}, "nothing to round"),
    ({"format": e8m0, "rule": "even", "top": 6}, "no top"),
    ({"format": e8m0, "rule": "ocp_ceil", "candidates": (6, 4)}, "no top"),
    ({"rounding": ceil}, "fp32, which takes the quotient"),
    ({"format": e8m0, "rounding": "celi"}, "scale.rounding: unknown rounding 'celi'"),
    ({"format": "e8m1"}, "scale.format: unknown format 'e8m1'; did you mean 'e8m0'"),
    ({"format": "int8"}, "scale.format: got IntFormat"),
    ({"headroom": 0}, "scale.headroom"),
    ({"headroom": math.nan}, "scale.headroom"),
    ({"prescale": -1.0}, "scale.prescale"),
    ({"top": 0}, "scale.top"),
    ({"top": 6, "candidates": (6, 4)}, "give one of them"),
    ({"candidates": [6, 4]}, "a tuple"),
    ({"candidates": (6, "4")}, "scale.top"),
    ({"by": "mae"}, "candidates"),
    ({"candidates": (6, 4), "by": "rmse"}, "scale.by"),
    ({"over": fp32}, "scale.over"),
    ({"format": e8m0, "rule": "rceil", "over": Scale(top=4)}, "second level"),
    ({"format": e4m3, "over": NVFP4}, "belongs to the inner"),
    ({"format": e4m3, "over": Scale(top=448, reciprocal=True)}, "belongs to the inner"),
    ({"format": e4m3, "over": Scale(e8m0, rule="ocp_floor")}, "'amax' and 'rceil'"),
    ({"over": Scale()}, "top="),
    ({"format": e8m0, "over": Scale()}, "top="),
    ({"granularity": 16}, "scale.granularity"),
    ({"correction": 32}, "scale.correction: got 32"),
    ({"format": e8m0, "rule": "rceil", "correction": blocks(32)}, "nothing to round"),
    ({"over": Scale(top=4, correction=blocks(32))}, "belongs to the inner"),
    ({"reciprocal": 1}, "scale.reciprocal"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(f) for f, _ in REFUSED])
def test_what_no_rule_honours_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Scale(**fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": e4m3, "range": None, "scale": Scale(e8m0)}, "without a range"),
        ({"format": uint8, "scale": Scale(e8m0, rule="rceil")}, "symmetric"),
        ({"format": uint8, "scale": NVFP4}, "symmetric"),
        ({"format": uint8, "scale": Scale(headroom=2)}, "symmetric"),
        ({"format": e2m1, "scale": Scale(granularity=per_token)}, "outer scale"),
        ({"format": e2m1, "scale": e8m0}, "Scale\\(e8m0\\)"),
        (
            {
                "format": e2m1,
                "scale": Scale(e4m3, rounding=stochastic()),
                "straight_through": "strict",
            },
            "draws it anew",
        ),
        (
            {
                "format": e2m1,
                "granularity": blocks(16),
                "scale": Scale(e4m3, over=Scale(top=448, granularity=per_token)),
            },
            "both of the product",
        ),
        (
            {
                "format": e2m1,
                "granularity": blocks(16),
                "scale": Scale(e4m3, correction=per_axis(0)),
            },
            "scale.correction: got .*both of the product",
        ),
        (
            {
                "format": e2m1,
                "scale": Scale(e8m0, rounding=ceil, correction=per_tensor),
                "rounding": stochastic(),
            },
            "elements to nearest",
        ),
        ({"format": uint8, "scale": Scale(correction=per_tensor)}, "symmetric"),
        ({"format": e2m1, "scale": Scale(top=448)}, "75 times the largest of e2m1.*over="),
        ({"format": e2m1, "scale": Scale(candidates=(6, 193))}, "scale.top: got 193"),
    ],
)
def test_quantizers_refuse_scales_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Quantizer(**settings)


def test_outer_blocks_are_whole_inner_ones() -> None:
    over = Scale(top=448, granularity=blocks(40))
    quantizer = Quantizer(format=e2m1, granularity=blocks(16), scale=Scale(e4m3, over=over))
    with pytest.raises(ValueError, match="no multiple of the 16"):
        quantizer(torch.ones(2, 64))
    assert quantizer(torch.ones(2, 40)).outer is not None  # one block, shorter than its size
    tall = Quantizer(
        format=e2m1,
        granularity=blocks(16, 16),
        scale=Scale(e4m3, over=Scale(top=448, granularity=blocks(None))),
    )
    with pytest.raises(ValueError, match="cuts axis 0"):
        tall(torch.ones(32, 64))


ALL = [
    Scale(), Scale(e8m0), Scale(e8m0, rounding=ceil), Scale(e8m0, rule="even"), NVFP4,
    Scale(e8m0, rule="ocp_floor", prescale=0.75), Scale(e8m0, rounding=floor, headroom=12 / 7),
    Scale(e4m3, rounding=stochastic(8), over=Scale(fp32, top=448, granularity=per_token)),
    Scale(e4m3, candidates=(6, 4), by="absmax", over=Scale(top=256), reciprocal=True),
    Scale(top=2.5), Scale(replace(e4m3, bias=9, name="")),
    Scale(e4m3, rounding=stochastic(8), over=Scale(top=255), correction=per_tensor),
    Scale(candidates=(6, 9, 12), by="cosine"),
]  # fmt: skip


@pytest.mark.parametrize("scale", ALL, ids=str)
def test_a_scale_is_a_value(scale: Scale) -> None:
    quantizer = Quantizer(
        format=e2m1, granularity=Granularity(((-1, 16),), rest="each"), scale=scale
    )
    for one in (scale, quantizer):
        for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), copy.copy(one)):
            assert other == one and hash(other) == hash(one)
            assert str(other) == str(one) and repr(other) == repr(one)
        assert replace(one) == one
    assert restored(spec(quantizer) or "") == quantizer
    names = {**vars(quantizers), **{f"stochastic({n})": stochastic(n) for n in (8,)}}
    names |= {"FloatFormat": quantizers.FloatFormat, "Granularity": quantizers.Granularity}
    assert eval(repr(scale), names) == scale
    assert len({*ALL}) == len(ALL) and len({str(s) for s in ALL}) == len(ALL)
    x = random_bits(root_key(1), (4, 32)).float()
    again = pickle.loads(pickle.dumps(quantizer))
    first, second = quantizer(x, key=root_key(2)), again(x, key=root_key(2))
    assert same_bits(first.dequantize(), second.dequantize())
    assert (str(scale) in str(quantizer)) == (scale != Scale())


def test_the_spellings_of_before() -> None:
    with pytest.warns(DeprecationWarning, match=r"give scale=Scale\(e8m0, rounding=ceil\)"):
        old = Quantizer(format=e4m3, scale_format=e8m0, scale_rounding=ceil)  # type: ignore[call-arg]
    assert old == Quantizer(format=e4m3, scale=Scale(e8m0, rounding=ceil))
    with pytest.warns(DeprecationWarning):
        assert Quantizer(format=e4m3, scale_format=fp32) == Quantizer(format=e4m3)  # type: ignore[call-arg]
    for both in ({"scale_format": e8m0}, {"scale_rounding": ceil}):
        with pytest.raises(ValueError, match="the spelling of before"):
            Quantizer(format=e4m3, scale=Scale(e8m0), **both)  # type: ignore[arg-type]
    kept = {**vars(old), "scale_format": e8m0, "scale_rounding": ceil}
    for name in ("scale", "_plain", "_noisy"):
        del kept[name]
    pickled = object.__new__(Quantizer)
    pickled.__setstate__(kept)
    assert pickled == old and not pickled._plain and not needs_key(pickled)
    assert not hasattr(pickled, "scale_format")
    with pytest.raises(TypeError, match="scale_formt"):
        Quantizer(format=e4m3, scale_formt=e8m0)  # type: ignore[call-arg]


FORMATS: list[Format] = [e2m1, e4m3, e5m2, e3m0, IntFormat(4), int8]
CLIPPING = [
    *(Scale(e8m0, rule=rule) for rule in ("ocp_floor", "ocp_ceil", "even", "rceil")),
    *(
        Scale(narrow, rounding=r, headroom=h)
        for narrow in (e8m0, e4m3, bf16)
        for r in (nearest_even, half_away, ceil, floor, toward_zero)
        for h in (1.0, 17 / 16, 9 / 8)
    ),
    Scale(), Scale(top=4), Scale(e8m0, rule="rceil", top=4), Scale(e8m0, rule="even", headroom=1.5),
    Scale(e8m0, rule="ocp_floor", headroom=12 / 7), Scale(e4m3, candidates=(6, 4)),
]  # fmt: skip


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_how_far_a_scale_clips_is_found_by_trying(fmt: Format) -> None:
    """The bound that is stated is no smaller than any amax / scale, and hardly larger."""
    amax = torch.arange(1 << 14, dtype=torch.float32) / (1 << 14) + 1
    amax = torch.cat([amax, amax * 2, amax.nextafter(torch.tensor(0.0))]).view(-1, 1)
    for scale in CLIPPING:
        for top in scale.tops(fmt):
            one = replace(scale, candidates=(), top=top) if scale.candidates else scale
            x = amax * 2.0 ** round(math.log2(top))  # scales around 1
            made = Quantizer(format=fmt, granularity=per_axis(0), scale=one)(x)
            assert made.scale is not None
            most = (x.double() / made.scale.double()).max().item()
            bound = reached(one, fmt)
            assert most <= bound * (1 + 2.0**-23) and most >= bound * (1 - 2.0**-7), scale


@pytest.mark.parametrize(
    ("scale", "fmt", "clips"),
    [
        (Scale(), e2m1, False),
        (Scale(e4m3), e2m1, True),
        (Scale(e4m3, headroom=17 / 16), e2m1, False),
        (Scale(e4m3, rounding=ceil), e2m1, False),
        (Scale(e4m3, rounding=floor, headroom=17 / 16), e2m1, True),
        (Scale(e4m3, rounding=stochastic(), headroom=9 / 8), e2m1, False),
        (NVFP4, e2m1, True),
        (replace(NVFP4, headroom=17 / 16), e2m1, False),
        (Scale(e4m3, headroom=17 / 16, over=Scale(top=480)), e2m1, True),
        (Scale(e4m3, headroom=17 / 16, over=Scale(top=256)), e2m1, False),
        (Scale(e8m0), e4m3, True),
        (Scale(e8m0, rule="rceil"), e4m3, False),
        (Scale(e8m0, rule="rceil", top=512), e4m3, True),
        (Scale(e8m0, rule="ocp_ceil"), e4m3, False),
        (Scale(e8m0, rule="ocp_floor"), e2m1, True),
        (Scale(e8m0, rule="ocp_floor", prescale=0.75), e2m1, False),
        (Scale(e8m0, rule="even"), e2m1, True),
        (Scale(e4m3, candidates=(6, 4)), e2m1, True),
        (Scale(e4m3, candidates=(4, 5)), e2m1, False),
        (Scale(top=7), e2m1, True),
    ],
)
def test_stochastic_elements_under_a_scale_that_clips_warn(
    scale: Scale, fmt: Format, clips: bool
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Quantizer(format=fmt, scale=scale, rounding=ceil)
        assert not seen
        made = Quantizer(format=fmt, scale=scale, rounding=stochastic())
        pickle.loads(pickle.dumps(made))(torch.ones(3), key=root_key(1))
    assert [w.category for w in seen] == [ClippingScaleWarning] * clips
    if clips:
        assert seen[0].filename == __file__
        for remedy in ("rounding=ceil", "rceil", "headroom=17/16"):
            assert remedy in str(seen[0].message)


def test_the_bias_that_is_warned_of_is_there_and_the_remedies_end_it() -> None:
    x = torch.linspace(1.0, 1.25, 512)[:, None] * torch.tensor([6.0, 1.0, 0.3, 0.11]) * 4
    cases = [
        (Scale(e4m3), True), (Scale(e4m3, headroom=17 / 16), False),
        (Scale(e8m0, rule="rceil"), False), (Scale(e4m3, rounding=ceil), False),
        (Scale(e8m0, rule="ocp_floor", prescale=0.75), False),
    ]  # fmt: skip
    for scale, biased in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippingScaleWarning)
            quantizer = Quantizer(
                format=e2m1, granularity=per_axis(0), scale=scale, rounding=stochastic()
            )
        total = torch.zeros(512, dtype=torch.float64)
        for seed in range(300):
            total += quantizer(x, key=root_key(seed)).dequantize()[:, 0].double()
        bias = (total / 300 / x[:, 0] - 1).mean().item()
        # 300 * 512 roundings by a third of amax at most
        assert (bias < -0.008) if biased else abs(bias) < 5 * 0.17 / math.sqrt(300 * 512)


def test_no_kernel_serves_what_is_not_plain() -> None:
    x = random_bits(root_key(4), (8, 32)).float()
    served = whole(x, Quantizer(format=e2m1, granularity=per_axis(0)), None, None, True)
    assert served is not None or not quantizers.kernels.serves(x)
    for scale in ALL[1:]:
        by = Quantizer(format=e2m1, granularity=per_axis(0), scale=scale)
        assert whole(x, by, None, root_key(1), True) is None
        with quantizers.kernels.eager():
            eager = by(x, key=root_key(1))
        assert same_bits(by(x, key=root_key(1)).dequantize(), eager.dequantize())
        assert needs_key(by) == bool(scale.random_bits)


@pytest.mark.parametrize("rule", [absmax, percentile(0.9), chunked_minmax(2), rms(2.5), ema()])
def test_every_range_takes_levels(rule: Any) -> None:
    x = random_bits(root_key(4), (8, 32)).float()
    grain = per_axis(0)
    by = Quantizer(format=e2m1, granularity=grain, range=rule, scale=NVFP4)
    state = by.init_state((8, 32))
    made = by(x, state=state)
    plain = Quantizer(format=e2m1, granularity=grain, range=rule)(x, state=by.init_state((8, 32)))
    assert made.scale is not None and made.outer is not None and plain.scale is not None
    wanted = plain.scale.max().item() / 448
    assert made.outer.item() == pytest.approx(wanted, rel=1e-6)
    ratio = (made.scale * made.outer / plain.scale).flatten()
    assert bool(((ratio - 1).abs() <= 2.0**-4).all())


def test_the_root_mean_square_is_in_fp64_and_stays_finite() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [3e38, -3e38, 3e38, 3e38], [0.0, 0.0, 0.0, 0.0]])
    x = torch.cat([x, torch.tensor([[1.0, math.inf, 0.0, 0.0], [math.nan, 1.0, 2.0, 3.0]])])
    low, high = rms(2.0)(x, (1, 4))
    assert high.flatten()[:3].tolist() == [5.0, torch.finfo(torch.float32).max, 0.0]
    assert torch.equal(low[:3], -high[:3])
    assert not torch.isfinite(high[3:]).any() and not torch.isfinite(low[3:]).any()
    low, high = rms(1.0)(torch.ones(3, 5), (1, 2))  # a shorter last block has its own mean
    assert high.tolist() == [[1.0, 1.0, 1.0]] * 3
    for wrong in (0, -1.0, "2"):
        with pytest.raises((TypeError, ValueError), match="rms: factor"):
            rms(wrong)  # type: ignore[arg-type]


def test_an_outer_scale_of_a_quantizer_of_ones_own_is_looked_at() -> None:
    x = torch.ones(4, 6)

    def made(outer: Any, scale: Any = 1) -> QTensor:
        one = torch.ones(4, 1) if scale else None
        own = lambda x, **_: QTensor(x.round(), one, None, e2m1, (1, 6), outer)  # noqa: E731
        return quantized(own, x, state=None, key=None, training=True)

    assert torch.equal(made(torch.full((4, 1), 3.0)).dequantize(), x * 3)
    assert torch.equal(made(torch.full((1, 1), 3.0)).dequantize(), x * 3)
    for outer in (torch.ones(4), torch.ones(3, 1), torch.ones(4, 1).double(), 2.0):
        with pytest.raises(ValueError, match="outer"):
            made(outer)
    with pytest.raises(ValueError, match="outer"):
        made(torch.ones(1, 1), scale=None)
    alone = lambda x, **_: QTensor(x, torch.tensor(2.0), None, e2m1, (), torch.tensor(3.0))  # noqa: E731
    found = quantized(alone, x, state=None, key=None, training=True)
    assert torch.equal(found.dequantize(), x * 6)


def test_values_of_two_levels_stay_finite_where_they_may() -> None:
    most = torch.finfo(torch.float32).max
    codes, far = torch.tensor([6.0, -6.0]), torch.tensor([2.0**120])
    x = QTensor(codes, torch.tensor([448.0]), None, e2m1, (2,), far)
    assert x.dequantize().tolist() == [most, -most]
    lost = x._replace(outer=torch.tensor([math.inf]))
    assert lost.dequantize().tolist() == [math.inf, -math.inf]
    codes, third = torch.tensor([3, -5], dtype=torch.int8), torch.tensor([1 / 3])
    halves = QTensor(codes, torch.tensor([0.5]), None, int8, (2,), third)
    assert same_bits(halves.dequantize(), torch.tensor([1.5, -2.5]) * third)


def test_what_follows_from_extremes_alone() -> None:
    for scale in (Scale(), Scale(e8m0), Scale(e8m0, rule="rceil"), Scale(top=100)):
        assert Quantizer(format=int8, scale=scale).by_extremes
    for scale in (
        NVFP4, Scale(reciprocal=True), Scale(candidates=(100, 127)), Scale(prescale=0.5),
        Scale(e8m0, rounding=stochastic()),
    ):  # fmt: skip
        assert not Quantizer(format=int8, scale=scale).by_extremes
