"""Rules of scales against exact fractions, for amax at every edge of every binade."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from quantizer_checks import SMALL
from torch import Tensor

from quantizers import (
    FloatFormat,
    Format,
    IntFormat,
    Quantizer,
    Rounding,
    Scale,
    ceil,
    floor,
    formats,
    half_away,
    kernels,
    nearest_even,
    per_axis,
    random_bits,
    root_key,
    stochastic,
    toward_zero,
)
from quantizers.noise import fold

KEY = root_key(5)
E8M0, E4M3 = formats.e8m0, formats.e4m3
ELEMENTS: list[Format] = [
    *(fmt for fmt in SMALL if fmt is not E8M0),
    FloatFormat(1, 4, specials="finite", name="e1m4"),
    FloatFormat(4, 3, bias=20, specials="finite", name="e4m3 below 1"),
    *(IntFormat(bits) for bits in (2, 4, 8, 16)),
]
POWERS = ["ocp_floor", "ocp_ceil", "even", "rceil"]


def largest(fmt: Format) -> Fraction:
    return Fraction(
        reference.bounds(fmt)[1] if isinstance(fmt, IntFormat) else reference.grid(fmt)[-1]
    )


def floor_log2(x: Fraction) -> int:
    """By the lengths of its integers, and a comparison."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def ceil_log2(x: Fraction) -> int:
    down = floor_log2(x)
    return down if Fraction(2) ** down == x else down + 1


def edges(fmt: Format) -> list[float]:
    """Bounds of both ends of fp32 and between: in each binade the significands around 1, 2, the
    middle, those of the format's largest number and those that "even" rounds up."""
    top = largest(fmt)
    mark = float(top / Fraction(2) ** floor_log2(top))
    bits = floor_log2(top) if isinstance(fmt, IntFormat) else fmt.mantissa
    marks = [1.0, 2.0, 1.5, mark, 2 - 2.0 ** -(bits + 1), 1.5 * mark % 1 + 1]
    significands = {m + n * 2.0**-23 for m in marks for n in (-2, -1, 0, 1, 2)}
    found = {
        float(np.float32(math.ldexp(s, e)))
        for e in (*range(-150, -115), *range(-115, 100, 9), *range(100, 128))
        for s in significands
        if 1 <= s < 2
    }
    return sorted(found - {0.0, math.inf})


def by_rule(amax: float, fmt: Format, scale: Scale) -> Fraction:
    """The power of two that a rule means, where the scale's format has no ends."""
    a, top = Fraction(amax) * Fraction(scale.headroom), largest(fmt)
    emax = floor_log2(top)
    if scale.rule == "rceil":
        top = top if scale.top is None else Fraction(scale.top)
        return Fraction(2) ** ceil_log2(a / top)
    if scale.rule == "ocp_ceil":
        return Fraction(2) ** (ceil_log2(a) - emax)
    if scale.rule == "even":
        bits = emax if isinstance(fmt, IntFormat) else fmt.mantissa
        step = Fraction(2) ** (floor_log2(a) - bits)
        a = (a / step + Fraction(1, 2)).__floor__() * step  # half up
    return Fraction(2) ** (floor_log2(a) - emax)


def scales(x: Tensor, fmt: Format, scale: Scale, **more: object) -> list[float]:
    """Of each row."""
    q = Quantizer(format=fmt, granularity=per_axis(0), scale=scale, **more)  # type: ignore[arg-type]
    found = q(x, key=KEY).scale
    assert found is not None and found.dtype == torch.float32
    return [float(one) for one in found.flatten()]


@pytest.mark.parametrize("headroom", [1.0, 17 / 16, 12 / 7])
@pytest.mark.parametrize("rule", POWERS)
@pytest.mark.parametrize("fmt", ELEMENTS, ids=str)
def test_rules_of_powers_of_two_are_exact(fmt: Format, rule: str, headroom: float) -> None:
    bounds = edges(fmt)
    scale = Scale(E8M0, rule=rule, headroom=headroom)  # type: ignore[arg-type]
    with kernels.eager():
        found = scales(torch.tensor(bounds).view(-1, 1), fmt, scale)
    least, most = Fraction(2) ** -127, Fraction(2) ** 127
    for amax, got in zip(bounds, found, strict=True):
        wanted = min(max(by_rule(amax, fmt, scale), least), most)
        assert Fraction(got) == wanted, (amax.hex(), got)
    codes = np.array(found, dtype=np.float32).astype(ml_dtypes.float8_e8m0fnu)
    assert codes.astype(np.float64).tolist() == found


def test_a_top_of_rceil_is_what_amax_becomes_at_most() -> None:
    for top in (4.0, 5.0, 6.0, 3.14):
        bounds = edges(formats.e2m1)
        scale = Scale(E8M0, rule="rceil", top=top)
        found = scales(torch.tensor(bounds).view(-1, 1), formats.e2m1, scale)
        for amax, got in zip(bounds, found, strict=True):
            assert Fraction(got) == max(by_rule(amax, formats.e2m1, scale), Fraction(2) ** -127)


@pytest.mark.parametrize("rounding", [nearest_even, ceil, floor, half_away, toward_zero], ids=str)
@pytest.mark.parametrize("narrow", [E8M0, E4M3, formats.e5m2, formats.e3m2], ids=str)
@pytest.mark.parametrize("fmt", [formats.e2m1, E4M3, formats.e5m2, IntFormat(8)], ids=str)
def test_the_quotient_is_rounded_to_the_format(
    fmt: Format, narrow: FloatFormat, rounding: Rounding
) -> None:
    bounds = edges(fmt)
    for top, headroom in ((None, 1.0), (float(largest(fmt)) * 2 / 3, 1.0), (None, 17 / 16)):
        scale = Scale(narrow, rounding=rounding, top=top, headroom=headroom)
        found = scales(torch.tensor(bounds).view(-1, 1), fmt, scale)
        reach = np.float32((top or float(largest(fmt))) / headroom)
        for amax, got in zip(bounds, found, strict=True):
            quotient = float(np.float32(amax) / reach)
            wanted = reference.round_float(quotient, narrow, rounding.mode, overflow="saturate")
            assert got == wanted, amax.hex()


def test_an_e4m3_scale_is_that_of_ml_dtypes() -> None:
    bounds = [amax for amax in edges(formats.e2m1) if 2.0**-20 < amax < 2.0**20]
    found = scales(torch.tensor(bounds).view(-1, 1), formats.e2m1, Scale(E4M3))
    quotients = np.minimum(np.array(bounds, dtype=np.float32) / np.float32(6), np.float32(448))
    assert found == quotients.astype(ml_dtypes.float8_e4m3fn).astype(np.float64).tolist()


def test_a_stochastic_scale_has_noise_of_its_own_and_is_unbiased() -> None:
    x = torch.full((1 << 14, 1), 6.0 * 1.3)
    for narrow, low, high in ((E4M3, 1.25, 1.375), (E8M0, 1.0, 2.0)):
        for rounding in (stochastic(), stochastic(8)):
            scale = Scale(narrow, rounding=rounding)
            found = scales(x, formats.e2m1, scale)
            assert set(found) == {low, high}
            mean = sum(found) / len(found)
            quotient = float(np.float32(7.8) / np.float32(6))
            assert abs(mean - quotient) < 5 * (high - low) / 2 / math.sqrt(len(found))
            bits = random_bits(fold(KEY, 1), (1 << 14, 1)).flatten().tolist()
            for one, drawn in zip(found, bits, strict=True):
                draw = ((drawn & 0xFFFFFFFF) >> (32 - rounding.random_bits)) + 0.5
                draw /= 2**rounding.random_bits
                assert one == reference.round_float(quotient, narrow, "stochastic", draw)


def test_scales_and_elements_do_not_share_their_noise() -> None:
    x = torch.linspace(100, 200, 64).view(64, 1) * torch.tensor([1.0, 0.3, 0.11])
    both = Quantizer(
        format=IntFormat(8), granularity=per_axis(0), rounding=stochastic(),
        scale=Scale(E4M3, rounding=stochastic(), headroom=1.125),
    )  # fmt: skip
    q = both(x, key=KEY)
    again = Quantizer(
        format=IntFormat(8), rounding=stochastic(), granularity=per_axis(0), scale=both.scale
    )
    assert torch.equal(again(x, key=KEY).elements, q.elements)
    for row in range(64):
        for column in range(3):
            index = row * 3 + column
            draw = (reference.random_bits(int(KEY) % 2**64, index) >> 9) + 0.5
            quotient = float(x[row, column] / q.scale[row, 0])  # type: ignore[index]
            element = reference.round_integer(quotient, "stochastic", draw / 2**23)
            assert q.elements[row, column].item() == element
    with pytest.raises(ValueError, match="key=root_key"):
        Quantizer(format=IntFormat(8), scale=both.scale)(x)


@pytest.mark.parametrize("rule", ["amax", *POWERS])
def test_tiny_maxima_keep_the_smallest_scale_and_zero_has_none(rule: str) -> None:
    """fp32 makes the quotient of a bound below largest * 2^-150 zero; e8m0 holds 2^-127."""
    bounds = torch.tensor([0.0, -0.0, 2.0**-149, 2.0**-140, 2.0**-135, 2.0**-127]).view(-1, 1)
    scale = Scale(E8M0, rule=rule)  # type: ignore[arg-type]
    q = Quantizer(format=formats.e5m2, granularity=per_axis(0), scale=scale)(bounds)
    assert q.scale is not None and q.scale.flatten().tolist() == [0.0, 0.0, *[2.0**-127] * 4]
    assert q.elements.flatten().tolist()[:2] == [0.0, -0.0]
    wanted = [reference.round_float(b * 2.0**127, formats.e5m2) for b in bounds.flatten().tolist()]
    assert q.elements.flatten().tolist() == wanted and wanted[4] > 0
    # a rule of powers of two keeps to the ends of a format that holds 0, too
    narrow = FloatFormat(5, 0, specials="fn", signed=False)
    if rule != "amax":
        found = scales(bounds, formats.e5m2, Scale(narrow, rule=rule))  # type: ignore[arg-type]
        assert found == [0.0, 0.0, *[2.0**-14] * 4]
    # a format that holds 0 makes it, and no other
    q = Quantizer(format=formats.e2m1, granularity=per_axis(0), scale=Scale(E4M3))(
        torch.tensor([[6 * 2.0**-11, -1e-9], [6 * 2.0**-9, 1.0e-9]])
    )
    assert q.scale is not None and q.scale.flatten().tolist() == [0.0, 2.0**-9]
    assert q.elements.tolist() == [[0.0, 0.0], [6.0, 0.0]]


@pytest.mark.parametrize("rule", ["amax", *POWERS])
@pytest.mark.parametrize("fmt", [formats.e2m1, formats.e5m2, IntFormat(8)], ids=str)
def test_what_is_not_finite_stays_in_its_granule(fmt: Format, rule: str) -> None:
    x = torch.tensor([[1.0, 2.0], [math.inf, 1.0], [1.0, math.nan], [0.5, -math.inf], [3.0, 4.0]])
    q = Quantizer(format=fmt, granularity=per_axis(0), scale=Scale(E8M0, rule=rule))(x)  # type: ignore[arg-type]
    assert q.scale is not None
    assert torch.isfinite(q.scale).flatten().tolist() == [True, False, False, False, True]
    assert torch.isfinite(q.dequantize()).all(1).tolist() == [True, False, False, False, True]


def test_a_scale_beyond_its_format_saturates_or_follows_it() -> None:
    small = FloatFormat(4, 3, bias=20, specials="finite")  # largest 0.117
    x = torch.tensor([[3e38], [1.0]])
    for rule in ("amax", *POWERS):
        assert scales(x, small, Scale(E8M0, rule=rule))[0] == 2.0**127  # type: ignore[arg-type]
    stated = FloatFormat(8, 0, bias=127, specials="fn", signed=False, zero=False, overflow="nan")
    for rule in ("amax", "ocp_floor", "rceil"):
        assert math.isnan(scales(x, small, Scale(stated, rule=rule))[0])  # type: ignore[arg-type]


def test_ocp_floor_is_not_floor_of_the_quotient() -> None:
    x = torch.tensor([[1.0, 0.9]])
    found = Quantizer(format=E4M3, scale=Scale(E8M0, rule="ocp_floor"))(x)
    assert found.scale is not None and found.scale.item() == 2.0**-8
    assert found.dequantize()[0, 0] == 1.0
    other = Quantizer(format=E4M3, scale=Scale(E8M0, rounding=floor))(x)
    assert other.scale is not None and other.scale.item() == 2.0**-9
    assert other.dequantize()[0, 0] == 0.875


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_have_the_scales_of_their_numbers(dtype: torch.dtype) -> None:
    x = (random_bits(root_key(2), (40, 6)).float() / 2**30).to(dtype)
    for rule, top in itertools.product(["amax", "rceil"], [None, 3.0]):
        scale = Scale(E8M0, rule=rule, top=top)  # type: ignore[arg-type]
        assert scales(x, formats.e2m1, scale) == scales(x.float(), formats.e2m1, scale)
