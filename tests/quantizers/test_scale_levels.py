"""Two levels, candidates and constants of scales against numpy and ml_dtypes, a block at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from quantizer_checks import compiled, same_bits
from torch import Tensor

from quantizers import (
    Quantizer,
    Scale,
    blocks,
    ceil,
    e2m1,
    e4m3,
    e5m2,
    e8m0,
    fp32,
    int8,
    per_token,
    percentile,
    random_bits,
    root_key,
    stochastic,
)

F = np.float32
MOST = np.finfo(np.float32).max
TINY = F(2.0**-126)
KEY = root_key(3)
B16, TILE = blocks(16), blocks(16, 16)
NVFP4 = Scale(e4m3, over=Scale(fp32, top=448))
SIX = Scale(e4m3, over=Scale(fp32, top=256), candidates=(6, 4))


def to_e4m3(x: Any) -> Any:
    """To nearest, saturating."""
    return F(np.minimum(F(x), F(448)).astype(ml_dtypes.float8_e4m3fn))


def to_e2m1(x: Any) -> Any:
    return np.clip(x, F(-6), F(6)).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)


class Block(NamedTuple):
    scale: Any
    elements: Any


def block_of(x: Any, whole: Any, scale: Scale, top: float) -> tuple[Block, Any]:
    """One block and the outer scale, `whole` being its granule's largest magnitude."""
    over, amax = scale.over, np.abs(x).max()
    assert over is not None and over.top is not None
    tops = scale.candidates or (6.0,)
    reach, most = top / scale.headroom, max(tops) / scale.headroom
    aim = F(most * over.top)
    if scale.reciprocal:
        big = F(1) if whole == 0 else min(aim / whole, MOST)
        outer = F(1) / big
        if scale.candidates:
            quotient = amax / F(most) * big
            quotient = quotient if top == max(tops) else quotient * F(max(tops) / top)
        else:
            quotient = amax * (big * (F(1) / F(reach)))
    else:
        outer = F(1) if whole == 0 else max(whole / aim, TINY)
        quotient = amax / outer / F(reach)
    inner = to_e4m3(quotient)
    step, y = inner * outer, x * F(scale.prescale)
    if step == 0:
        elements = np.zeros_like(x)
    elif scale.reciprocal:
        elements = to_e2m1(np.clip(y * min(F(1) / step, MOST), -MOST, MOST))
    else:
        elements = to_e2m1(y / step)
    return Block(inner, elements), outer


def error(block: Block, outer: Any, x: Any, by: str) -> Fraction:
    """Exact."""
    factor = Fraction(float(block.scale)) * Fraction(float(outer))
    pairs = zip(block.elements.flat, x.flat, strict=True)
    gaps = [abs(Fraction(float(e)) * factor - Fraction(float(v))) for e, v in pairs]
    if by == "absmax":
        return max(gaps)
    return sum((gap if by == "mae" else gap * gap for gap in gaps), Fraction(0))


def best(x: Any, whole: Any, scale: Scale) -> tuple[Block, Any]:
    found = [block_of(x, whole, scale, top) for top in scale.candidates or (6.0,)]
    errors = [error(*one, x, scale.by) for one in found] if len(found) > 1 else [Fraction(0)]
    return found[errors.index(min(errors))]


def numbers(kind: str) -> Tensor:
    """(32, 48), fp32."""
    draw = random_bits(root_key(9), (32, 48)).double() / 2.0**31
    columns, rows = torch.arange(48)[None] // 16, torch.arange(32)[:, None] % 5
    x = {
        "gaussian": torch.erfinv(draw * 0.999),
        "heavy": torch.tan(draw * 1.57),
        "tiny": torch.erfinv(draw * 0.999) * 2.0**-128,
        "subnormal": draw * 2.0**-146,
        "huge": draw * 3.4e38,
        "bf16": torch.erfinv(draw * 0.999).bfloat16().double(),
        "halves": (draw * 16).round() / 2,
        "ties": (draw * 24).round() / 4 * 6,
        "spread": draw * 2.0 ** (3 * rows - 11 * columns),
    }[kind]
    x[3, 16:32] = 0
    x[16:32, 32:] *= 0 if kind != "gaussian" else 1
    return x.float()


KINDS = ["gaussian", "heavy", "tiny", "subnormal", "huge", "bf16", "halves", "ties", "spread"]
SCALES = {
    "two": NVFP4,
    "reciprocal": Scale(e4m3, over=Scale(fp32, top=448), reciprocal=True),
    "headroom": Scale(e4m3, over=Scale(fp32, top=448), headroom=17 / 16),
    "headroom reciprocal": Scale(e4m3, over=Scale(top=384), headroom=17 / 16, reciprocal=True),
    "mse": SIX,
    "mse reciprocal": Scale(e4m3, over=Scale(fp32, top=256), candidates=(6, 4), reciprocal=True),
    "mae": Scale(e4m3, over=Scale(fp32, top=256), candidates=(4, 6, 5), by="mae"),
    "absmax": Scale(e4m3, over=Scale(fp32, top=256), candidates=(6, 4), by="absmax"),
}


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCALES)
def test_two_levels_are_those_of_numpy(name: str, kind: str) -> None:
    x = numbers(kind)
    for grain, height, per_row in ((B16, 1, False), (TILE, 16, False), (B16, 1, True)):
        scale = SCALES[name]
        if per_row:
            assert scale.over is not None
            over = Scale(fp32, top=scale.over.top, granularity=blocks(None))
            scale = Scale(
                e4m3, over=over, headroom=scale.headroom, candidates=scale.candidates,
                by=scale.by, reciprocal=scale.reciprocal,
            )  # fmt: skip
        made = Quantizer(format=e2m1, granularity=grain, scale=scale)(x)
        assert made.scale is not None and made.outer is not None
        assert made.outer.shape == ((32, 1) if per_row else (1, 1))
        for row in range(32 // height):
            for column in range(3):
                at = slice(row * height, (row + 1) * height), slice(column * 16, column * 16 + 16)
                part = x.numpy()[at]
                whole = x[at[0]].abs().amax() if per_row else x.abs().amax()
                block, outer = best(part, whole.numpy(), scale)
                assert made.outer[row * per_row, 0].item() == outer
                assert made.scale[row, column].item() == block.scale, (row, column)
                assert np.array_equal(made.elements.numpy()[at], block.elements)
                with np.errstate(over="ignore"):
                    value = np.clip(block.elements * block.scale * outer, -MOST, MOST)
                assert np.array_equal(made.dequantize().numpy()[at], value)
        assert bool((made.elements[3, 16:32] == 0).all())


@pytest.mark.parametrize("name", ["two", "reciprocal", "mse", "mse reciprocal"])
def test_the_order_of_roundings_is_the_one_that_is_stated(name: str) -> None:
    """Blocks whose scale lies where one rounding more or less decides it: next to midpoints."""
    scale = SCALES[name]
    assert scale.over is not None and scale.over.top is not None
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    grid = np.unique(codes[np.isfinite(codes) & (codes >= 2.0**-6) & (codes <= scale.over.top)])
    middle = (grid[1:] + grid[:-1]) / 2
    draw = np.random.default_rng(1)
    whole = draw.uniform(1, 2, 3000).astype(F)
    top = np.where(draw.random(3000) < 0.5, 6, 4 if scale.candidates else 6)
    near = draw.choice(middle, 3000) * top * whole.astype(np.float64) / (6 * scale.over.top)
    near = np.minimum(near * (1 + draw.integers(-4, 5, 3000) * 2.0**-24), whole).astype(F)
    x = torch.zeros(3000, 32)
    x[:, 0], x[:, 16] = torch.from_numpy(whole), torch.from_numpy(near)
    over = replace(scale.over, granularity=blocks(None))
    made = Quantizer(format=e2m1, granularity=B16, scale=replace(scale, over=over))(x)
    assert made.scale is not None
    for row in range(3000):
        block, _ = best(x.numpy()[row : row + 1, 16:], whole[row], scale)
        assert made.scale[row, 1].item() == block.scale, (whole[row].hex(), near[row].hex())


def test_a_ragged_tail_is_a_block_of_what_is_left() -> None:
    x = numbers("heavy")[:5, :39]
    long = Scale(e4m3, over=Scale(top=448, granularity=blocks(32)))
    for scale in (NVFP4, SIX, SCALES["absmax"], long):
        made = Quantizer(format=e2m1, granularity=B16, scale=scale)(x)
        assert made.scale is not None and made.scale.shape == (5, 3)
        if (
            scale.over is not None
            and scale.over.granularity != per_token
            and made.outer is not None
        ):
            wanted = (5, 3) if scale.over.granularity == blocks(32) else (1, 1)
            assert made.outer.shape == wanted
        padded = torch.cat([x, torch.zeros(5, 9)], 1)
        other = Quantizer(format=e2m1, granularity=B16, scale=scale)(padded)
        assert torch.equal(made.elements, other.elements[:, :39])
        assert other.scale is not None and torch.equal(made.scale, other.scale)
        assert torch.equal(made.dequantize(), other.dequantize()[:, :39])


def test_an_outer_scale_of_other_formats_and_rules() -> None:
    x = numbers("gaussian")
    power = Quantizer(
        format=e2m1, granularity=B16, scale=Scale(e4m3, over=Scale(e8m0, rule="rceil", top=448))
    )(x)
    assert power.outer is not None and power.scale is not None
    amax = x.abs().max().item()
    assert power.outer.item() == 2.0 ** math.ceil(math.log2(amax / 6 / 448))
    assert 224 <= power.scale.max().item() <= 448
    up = Scale(e4m3, over=Scale(e8m0, rounding=ceil, top=448))
    same = Quantizer(format=e2m1, granularity=B16, scale=up)(x)
    assert same_bits(same.elements, power.elements)


def test_prescaled_elements_are_divided_again() -> None:
    x = numbers("gaussian")
    plain = Scale(e8m0, rule="ocp_floor")
    before = Scale(e8m0, rule="ocp_floor", prescale=3 / 4)
    made = Quantizer(format=e2m1, granularity=B16, scale=before)(x)
    other = Quantizer(format=e2m1, granularity=B16, scale=plain)(x * F(0.75).item())
    base = Quantizer(format=e2m1, granularity=B16, scale=plain)(x)
    assert made.scale is not None and base.scale is not None and made.outer is not None
    assert torch.equal(made.scale, base.scale) and made.outer.tolist() == [[F(1) / F(0.75)]]
    step = made.scale.repeat_interleave(16, 1)
    wanted = to_e2m1((x * 0.75 / torch.where(step == 0, 1, step)).numpy())
    assert np.array_equal(made.elements.numpy(), wanted)
    assert other.outer is None
    assert made.elements.abs().max() == 6.0
    both = Scale(e4m3, over=Scale(fp32, top=448), prescale=0.5)
    two = Quantizer(format=e2m1, granularity=B16, scale=both)(x)
    one = Quantizer(format=e2m1, granularity=B16, scale=NVFP4)(x)
    assert two.outer is not None and one.outer is not None
    assert torch.equal(two.outer, one.outer * 2) and two.elements.abs().max() == 3.0


FINITE = [
    *SCALES.values(), Scale(e8m0, rule="ocp_floor", prescale=0.75), Scale(reciprocal=True),
    Scale(e8m0, reciprocal=True), Scale(e5m2, reciprocal=True), Scale(candidates=(6, 4)),
    Scale(reciprocal=True, prescale=0.5, candidates=(6, 5)), Scale(e8m0, rule="rceil"),
]  # fmt: skip


@pytest.mark.parametrize("scale", FINITE, ids=str)
def test_what_is_not_finite_stays_in_its_block(scale: Scale) -> None:
    x = numbers("gaussian")
    clean = Quantizer(format=e2m1, granularity=B16, scale=scale)
    for bad in (math.nan, math.inf, -math.inf):
        y = x.clone()
        y[7, 5] = bad
        made = clean(y)
        good = torch.isfinite(made.dequantize())
        assert made.scale is not None and not torch.isfinite(made.scale[7, 0])
        assert not good[7, :16].any() and bool(good[7, 16:].all() and good[:7].all())
        y[7, :16] = 0
        assert torch.equal(clean(y).elements[8:], made.elements[8:])


@pytest.mark.parametrize("reciprocal", [False, True])
def test_zeros_and_scales_that_underflow_make_zeros(reciprocal: bool) -> None:
    x = torch.zeros(2, 32)
    quantizer = Quantizer(
        format=e2m1, granularity=B16, scale=Scale(e4m3, over=Scale(top=448), reciprocal=reciprocal)
    )
    made = quantizer(x)
    assert made.outer is not None and made.outer.tolist() == [[1.0]]
    assert not made.elements.any() and not made.dequantize().any()
    x[0, :16], x[1, 16:] = 1.0, 2.0**-25  # its scale would be 448 * 2^-25, below 2^-10
    made = quantizer(x)
    assert made.scale is not None and made.scale[1, 1] == 0
    assert not made.elements[1].any() and bool((made.elements[0, :16] == 6).all())
    alone = Quantizer(format=e2m1, granularity=B16, scale=Scale(e4m3, reciprocal=reciprocal))(x)
    assert alone.scale is not None and alone.scale[1, 1] == 0 and not alone.elements[1].any()


@pytest.mark.filterwarnings("ignore::quantizers.ClippingScaleWarning")
def test_candidates_are_chosen_by_elements_to_nearest() -> None:
    """So a stochastic element is unbiased under the scale that is chosen."""
    x = numbers("gaussian")
    nearest = Quantizer(format=e2m1, granularity=B16, scale=SIX)(x)
    random = Quantizer(format=e2m1, granularity=B16, scale=SIX, rounding=stochastic())
    assert nearest.scale is not None
    for seed in range(4):
        made = random(x, key=root_key(seed))
        assert made.scale is not None and torch.equal(made.scale, nearest.scale)
        assert not torch.equal(made.elements, nearest.elements)


def test_a_stochastic_scale_of_two_levels_is_unbiased() -> None:
    x = torch.zeros(4096, 16)
    x[:, 0], x[0, 1] = 1.03, 6.0
    scale = Scale(e4m3, rounding=stochastic(), headroom=9 / 8, over=Scale(top=400))
    made = Quantizer(format=e2m1, granularity=B16, scale=scale)(x, key=KEY)
    plain = Quantizer(format=e2m1, granularity=B16, scale=NVFP4)(x)
    assert made.scale is not None and plain.scale is not None and made.outer is not None
    assert len(made.scale[1:].unique()) == 2
    mean = (made.scale[1:] * made.outer).double().mean().item()
    spread = (made.scale[1:] * made.outer).double().std().item() / math.sqrt(4095)
    assert abs(mean - 1.03 * 9 / 8 / 6) < 5 * spread
    with pytest.raises(ValueError, match="key=root_key"):
        Quantizer(format=e2m1, granularity=B16, scale=scale)(x)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    x = numbers("bf16").to(torch.float16).to(dtype)
    made = Quantizer(format=e2m1, granularity=B16, scale=SCALES[name])(x)
    other = Quantizer(format=e2m1, granularity=B16, scale=SCALES[name])(x.float())
    assert made.scale is not None and other.scale is not None
    assert torch.equal(made.scale, other.scale)
    if dtype is not torch.float64:
        assert same_bits(made.elements, other.elements)
    else:  # one rounding fewer
        assert made.elements.dtype == torch.float64
        assert (made.elements != other.elements).float().mean() < 0.01


def test_integers_have_levels_too() -> None:
    x = numbers("heavy")
    made = Quantizer(format=int8, granularity=B16, scale=NVFP4)(x)
    assert made.elements.dtype == torch.int8 and made.outer is not None and made.scale is not None
    assert abs(made.outer.item() - x.abs().max().item() / 127 / 448) < 1e-9
    step = (made.scale * made.outer).repeat_interleave(16, 1)
    wanted = (x / torch.where(step == 0, 1.0, step)).round().clamp(-127, 127)
    assert torch.equal(made.elements.float(), torch.where(step == 0, 0.0, wanted))


def test_the_gradient_stops_at_both_levels_ends() -> None:
    x = numbers("gaussian")
    for way in ("inclusive", "strict"):
        scale = Scale(e8m0, rule="ocp_floor", prescale=0.9)
        quantizer = Quantizer(format=e2m1, granularity=B16, scale=scale, straight_through=way)  # type: ignore[arg-type]
        made = quantizer(x)
        assert made.scale is not None and made.outer is not None
        end = 6 * (made.scale * made.outer).repeat_interleave(16, 1)
        inside = (x.abs() <= end) if way == "inclusive" else (x.abs() < end)
        assert torch.equal(quantizer.backward(torch.ones_like(x), x, None), inside.float())
        assert not bool(inside.all())


@pytest.mark.parametrize(
    "scale",
    [NVFP4, SIX, Scale(e8m0, rule="even"), Scale(e8m0, rule="ocp_floor", prescale=0.75),
     Scale(e4m3, rounding=stochastic(), over=Scale(top=448, granularity=blocks(None)))],
    ids=str,
)  # fmt: skip
def test_a_compiled_graph_has_the_same_bits(scale: Scale) -> None:
    x = numbers("gaussian")
    quantizer = Quantizer(format=e2m1, granularity=B16, scale=scale)
    wanted = quantizer(x, key=KEY)

    def run(x: Tensor, key: Tensor) -> tuple[Any, ...]:
        q = quantizer(x, key=key)
        return q.elements, q.scale, q.outer, q.dequantize()

    elements, inner, outer, values = compiled(run)(x, KEY)
    assert wanted.scale is not None
    assert same_bits(elements, wanted.elements) and same_bits(inner, wanted.scale)
    assert same_bits(values, wanted.dequantize())
    assert (outer is None) == (wanted.outer is None)
    if wanted.outer is not None:
        assert same_bits(outer, wanted.outer)


@pytest.mark.parametrize("scale", FINITE, ids=str)
def test_empty_tensors_numbers_and_tensors_without_numbers(scale: Scale) -> None:
    quantizer = Quantizer(format=e2m1, scale=scale)
    for shape in ((0,), (3, 0), (0, 4, 5), ()):
        x = torch.ones(shape)
        for made in (quantizer(x), quantizer(x.to("meta"))):
            assert made.scale is not None and made.scale.shape == (1,) * x.dim()
            assert made.elements.shape == x.shape == made.dequantize().shape
            assert made.outer is None or made.outer.shape == made.scale.shape
    near = 0.5 if scale.format == e8m0 else 0.1
    assert quantizer(torch.tensor(1.5)).dequantize().item() == pytest.approx(1.5, rel=near)
    blocks = Quantizer(format=e2m1, granularity=B16, scale=scale)(torch.ones(4, 40, device="meta"))
    assert blocks.scale is not None and blocks.scale.shape == (4, 3)


def test_finite_numbers_far_beyond_the_range_are_the_largest_element() -> None:
    x = torch.full((1, 64), 1e-3)
    x[0, 3], x[0, 40] = 3e38, -3e38
    single, two = Scale(reciprocal=True), SCALES["reciprocal"]
    for scale in (single, two, Scale(e8m0, prescale=8.0)):
        made = Quantizer(format=e2m1, range=percentile(0.9), scale=scale)(x)
        assert made.elements[0, [3, 40]].tolist() == [6.0, -6.0]
        assert bool(torch.isfinite(made.dequantize()).all())
