"""Formats and roundings by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantizers import (
    FloatFormat,
    Format,
    IntFormat,
    Quantizer,
    Scale,
    ceil,
    e4m3,
    formats,
    fp16,
    int8,
    nearest_even,
    rounding,
)
from quantizers import stochastic as drawn
from quantizers.accumulators import sequential


@pytest.mark.parametrize("name", formats.NAMED)
def test_every_format_has_its_name(name: str) -> None:
    wide = formats.NAMED[name].largest > 2.0**48
    by_name = Quantizer(format=name, range=None) if wide else Quantizer(format=name)
    assert by_name == replace(by_name, format=formats.NAMED[name])
    assert isinstance(by_name.format, Format)


@pytest.mark.parametrize("name", rounding.NAMED)
def test_every_rounding_has_its_name(name: str) -> None:
    by_name = Quantizer(format="e4m3", rounding=name)
    own = rounding.NAMED[name]
    assert by_name == Quantizer(format=e4m3, rounding=own) and by_name.rounding is own
    assert str(by_name) == str(Quantizer(format=e4m3, rounding=own))


def test_what_a_rounding_prints_as_is_its_name() -> None:
    for bits in range(1, 24):
        assert rounding.get(str(drawn(bits))) == rounding.get(f"stochastic({bits})") == drawn(bits)
    modes = ("nearest_even", "half_away", "toward_zero", "floor", "ceil")
    assert all(rounding.get(mode) == rounding.Rounding(mode) for mode in modes)
    assert rounding.get("stochastic") == drawn()


def test_a_format_of_sums_without_a_name_is_had_by_its_widths() -> None:
    assert formats.get_sum("e6m9") == FloatFormat(6, 9)
    assert formats.get_sum("e4m3") == e4m3 != FloatFormat(4, 3)
    for text in ("e9m3", "e1m2", "e4m24", "e4m0", "e04m3"):
        with pytest.raises(ValueError, match="unknown format"):
            formats.get_sum(text)
    with pytest.raises(ValueError, match=r"of those widths is FloatFormat\(6, 9\)"):
        formats.get("e6m9")


def test_an_accumulators_formats_and_rounding_have_names() -> None:
    named = sequential("e6m9", product="fp16", rounding="stochastic(8)")
    assert named == sequential(FloatFormat(6, 9), product=fp16, rounding=drawn(8))
    with pytest.raises(ValueError, match="product: unknown format 'fp17'"):
        sequential(fp16, product="fp17")
    with pytest.raises(TypeError, match="format: got IntFormat"):
        sequential("int8")


def test_a_scales_format_and_rounding_have_names() -> None:
    for name in ("e8m0", "e4m3", "fp32"):
        assert Scale(name) == Scale(format=name) == Scale(formats.NAMED[name])  # type: ignore[arg-type]
    two = Scale("e4m3", rounding="stochastic(8)", over=Scale("fp32", top=448))
    assert two == Scale(e4m3, rounding=drawn(8), over=Scale(top=448)) and two.random_bits == 8
    assert hash(two) == hash(Scale(e4m3, rounding=drawn(8), over=Scale(top=448)))
    assert replace(Scale("e8m0"), rounding="ceil") == Scale(formats.NAMED["e8m0"], rounding=ceil)  # type: ignore[arg-type]
    assert repr(Scale("e8m0", rule="rceil")) == "Scale(e8m0, rule='rceil')"


def test_names_serve_where_a_setting_is_changed() -> None:
    plain = Quantizer(format=int8)
    assert replace(plain, rounding="stochastic").rounding == drawn()
    assert replace(plain, format="e4m3") == Quantizer(format=e4m3)
    assert plain.rounding == nearest_even


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"format": "e4m4"}, "format: unknown format 'e4m4'; did you mean 'e4m3'"),
        ({"format": "int-8"}, "did you mean 'int8'"),
        ({"format": "FP8"}, r"that is 'e4m3' \(more precise\) or 'e5m2' \(wider\) here"),
        ({"format": "fp4"}, "that is 'e2m1' here"),
        ({"format": "float16"}, "that is 'fp16' here"),
        ({"format": "bfloat16"}, "that is 'bf16' here"),
        ({"format": ""}, "format: unknown format ''; formats.NAMED lists all$"),
        ({"format": "fp32"}, "range: got AbsMax.. for fp32"),
        ({"rounding": "stochastc"}, "rounding: unknown rounding 'stochastc'; did you mean 'stocha"),
        ({"rounding": "SR"}, "did you mean 'stochastic'"),
        ({"rounding": "nearest"}, "did you mean 'nearest_even'"),
        ({"rounding": "up"}, "did you mean 'ceil'"),
        (
            {"rounding": "stochastic(24)"},
            r"stochastic\(1\) to stochastic\(23\), by its random bits",
        ),
        ({"rounding": "stochastic(0)"}, "unknown rounding"),
        ({"rounding": "stochastic( 8)"}, r"did you mean 'stochastic\(8\)'"),
        ({"rounding": "int8"}, "rounding: unknown rounding 'int8'; known: nearest_even"),
    ],
)
def test_near_misses_get_a_hint(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Quantizer(**{"format": int8, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["format", "rounding"])
def test_other_kinds_are_refused_as_ever(field: str) -> None:
    for wrong in (8, None, b"int8", IntFormat):
        with pytest.raises(TypeError, match=f"{field}: got"):
            Quantizer(**{"format": int8, field: wrong})  # type: ignore[arg-type]
