"""Formats against ml_dtypes and gfloat: every code of every format of up to 8 bits."""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from quantizer_checks import SMALL, VARIANTS, same_bits

from quantizers import FloatFormat, IntFormat, formats, round_to_float, stochastic
from quantizers.rounding import nearest_even

ML_DTYPES = {
    formats.e5m2: ml_dtypes.float8_e5m2,
    formats.e4m3: ml_dtypes.float8_e4m3fn,
    formats.e3m2: ml_dtypes.float6_e3m2fn,
    formats.e2m3: ml_dtypes.float6_e2m3fn,
    formats.e2m1: ml_dtypes.float4_e2m1fn,
    formats.e8m0: ml_dtypes.float8_e8m0fnu,
    FloatFormat(4, 3, name="float8_e4m3"): ml_dtypes.float8_e4m3,
    FloatFormat(3, 4, name="float8_e3m4"): ml_dtypes.float8_e3m4,
}
NAMED_FLOATS = [f for f in formats.NAMED.values() if isinstance(f, FloatFormat)]
ENUMERABLE = [f for f in [*NAMED_FLOATS, *VARIANTS] if f.bits <= 16]
INTS = [IntFormat(b, s, y) for b in range(2, 17) for s in (True, False) for y in (True, False)]


def up_to_8_bits() -> list[FloatFormat]:
    found = []
    for exponent in range(1, 9):
        for mantissa in range(0, 8):
            for specials in ("ieee", "fn", "finite"):
                for signed in (True, False):
                    try:
                        fmt = FloatFormat(exponent, mantissa, specials=specials, signed=signed)
                    except ValueError:
                        continue  # too few bits for its special values, or too wide for fp32
                    if fmt.bits <= 8:
                        found.append(fmt)
    return found


@pytest.mark.parametrize("fmt", ML_DTYPES, ids=str)
def test_every_code_equals_ml_dtypes(fmt: FloatFormat) -> None:
    theirs = np.arange(2**fmt.bits, dtype=np.uint8).view(ML_DTYPES[fmt]).astype(np.float32)
    assert same_bits(fmt.decode(fmt.codes()), torch.from_numpy(theirs))


def test_every_code_of_every_format_up_to_8_bits_equals_gfloat_and_the_reference() -> None:
    found = up_to_8_bits()
    assert len(found) > 100
    for fmt in found:
        nans = {"ieee": 2**fmt.mantissa - 1, "fn": 1, "finite": 0}[fmt.specials]
        domain = gfloat.Domain.Extended if fmt.has_inf else gfloat.Domain.Finite
        info = gfloat.FormatInfo(
            str(fmt),
            fmt.bits,
            fmt.mantissa + 1,
            bias=fmt.offset,
            is_signed=fmt.signed,
            domain=domain,
            has_nz=fmt.signed,
            num_high_nans=nans,
            has_subnormals=True,
            is_twos_complement=False,
        )
        codes = range(2**fmt.bits)
        theirs = torch.tensor([gfloat.decode_float(info, code).fval for code in codes])
        slow = torch.tensor([reference.decode(fmt, code) for code in codes])
        assert same_bits(fmt.decode(fmt.codes()), theirs), fmt
        assert same_bits(slow, theirs), fmt


@pytest.mark.parametrize("fmt", ENUMERABLE, ids=str)
def test_codes_decode_in_order_and_round_trip(fmt: FloatFormat) -> None:
    codes = fmt.codes()
    values = fmt.decode(codes)
    finite = torch.isfinite(values)
    magnitudes = values[: 2 ** (fmt.exponent + fmt.mantissa)]
    magnitudes = magnitudes[torch.isfinite(magnitudes)]
    assert bool((magnitudes[1:] > magnitudes[:-1]).all())
    assert torch.equal(fmt.encode(values)[finite], codes[finite])
    assert same_bits(fmt.decode(fmt.encode(values)), values)  # one NaN for all
    slow = torch.tensor(reference.grid(fmt), dtype=torch.float64).float()
    assert torch.equal(magnitudes, slow)


@pytest.mark.parametrize("fmt", [*NAMED_FLOATS, *VARIANTS], ids=str)
def test_float_identities(fmt: FloatFormat) -> None:
    assert fmt.bits == int(fmt.signed) + fmt.exponent + fmt.mantissa
    edge = torch.tensor([fmt.largest, fmt.smallest, fmt.smallest_normal], dtype=torch.float64)
    assert torch.equal(round_to_float(edge, fmt), edge)
    half = round_to_float(edge[1] / 2, fmt).item()
    assert half == (0.0 if fmt.zero else fmt.smallest)
    step = 2.0 ** (torch.frexp(edge[0]).exponent.item() - 1 - fmt.mantissa)
    over = {"inf": float("inf"), "nan": float("nan"), "saturate": fmt.largest}[fmt.on_overflow]
    expected = torch.tensor([fmt.largest, over], dtype=torch.float64)
    # a quarter step above stays, a whole step overflows by the stated rule
    beyond = torch.tensor([fmt.largest + step / 4, fmt.largest + step], dtype=torch.float64)
    assert same_bits(round_to_float(beyond, fmt), expected)
    if fmt.bits <= 16:
        finite = fmt.decode(fmt.codes())
        finite = finite[torch.isfinite(finite)]
        assert finite.max().item() == fmt.largest
        assert finite[finite > 0].min().item() == fmt.smallest


@pytest.mark.parametrize("fmt", [*SMALL, *VARIANTS], ids=str)
def test_a_nonfinite_number_never_becomes_finite(fmt: FloatFormat) -> None:
    x = torch.tensor([float("inf"), -float("inf"), float("nan")])
    bits = torch.full((3,), -1, dtype=torch.int32)
    for rounding in (nearest_even, stochastic()):
        y = round_to_float(x, fmt, rounding, bits)
        kept = [fmt.has_inf, fmt.has_inf and fmt.signed, False]
        assert torch.isinf(y).tolist() == kept
        assert not bool(torch.isfinite(y).any())


def test_overflow_of_the_named_formats() -> None:
    x = torch.tensor([1e6, -1e6])
    inf = torch.tensor([float("inf"), -float("inf")])
    assert torch.equal(round_to_float(x, formats.fp16), inf)
    assert torch.equal(round_to_float(x, formats.e5m2), inf)
    for fmt in (formats.e4m3, formats.e3m2, formats.e2m3, formats.e2m1, formats.e3m0):
        assert torch.equal(round_to_float(x, fmt), torch.tensor([fmt.largest, -fmt.largest]))


@pytest.mark.parametrize("fmt", INTS, ids=repr)
def test_int_identities(fmt: IntFormat) -> None:
    assert (fmt.low, fmt.high) == reference.bounds(fmt)
    unused = 1 if fmt.signed and fmt.symmetric else 0
    assert fmt.high - fmt.low + 1 == 2**fmt.bits - unused
    if fmt.symmetric and fmt.signed:
        assert fmt.low == -fmt.high
    codes = fmt.codes()
    assert torch.equal(codes.long(), torch.arange(fmt.low, fmt.high + 1))
    assert codes.dtype == fmt.dtype
    smaller = {torch.int16: torch.int8, torch.int32: torch.int16}.get(fmt.dtype)
    assert smaller is None or torch.iinfo(smaller).max < fmt.high


@pytest.mark.parametrize(
    "fmt", [*SMALL, *VARIANTS, IntFormat(4), formats.nf4, formats.dynamic8, formats.e8m0], ids=str
)
def test_neighbours_are_numbered_and_as_far_apart_as_is_said(fmt: formats.Format) -> None:
    values = torch.unique(fmt.decode(fmt.codes()) if hasattr(fmt, "decode") else fmt.codes())
    values = values[torch.isfinite(values)]
    if not getattr(fmt, "zero", True):  # there is a gap where 0 would be
        values = values[values > 0]
    numbers = fmt.ordinals(values)
    assert torch.equal(numbers.diff(), torch.ones_like(numbers[1:]))
    gaps = values.double().diff()
    between = values[:-1].double() + gaps / 4
    assert torch.equal(fmt.spacing(between).expand_as(gaps), gaps)


@pytest.mark.parametrize("bits", [0, 1, 17, -8, 7.5, True, "eight", None])
def test_bad_bits_are_refused_by_name(bits: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"bits: got .*need an integer from 2 to 16"):
        IntFormat(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("widths", "options", "word"),
    [
        ((0, 3), {}, "exponent"),
        ((9, 3), {}, "exponent"),
        ((True, 3), {}, "exponent"),
        ((4, -1), {}, "mantissa"),
        ((4, 24), {}, "mantissa"),
        ((4, 2.0), {}, "mantissa"),
        ((4, 3), {"bias": 1.5}, "bias"),
        ((4, 3), {"specials": "fnuz"}, "specials"),
        ((4, 3), {"overflow": "wrap"}, "overflow"),
        ((4, 3), {"specials": "fn", "overflow": "inf"}, "no inf"),
        ((1, 3), {}, "ieee"),
        ((4, 0), {}, "ieee"),
        ((1, 0), {"specials": "fn"}, "fn"),
        ((8, 23), {"specials": "finite"}, "exact in fp32"),
        ((8, 7), {"bias": 200}, "exact in fp32"),
        ((2, 3), {"bias": 149, "specials": "finite", "zero": False}, "exact in fp32"),
    ],
)
def test_bad_float_formats_are_refused(widths: tuple, options: dict, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        FloatFormat(*widths, **options)


@pytest.mark.parametrize(
    ("fmt", "value"),
    [
        (formats.e4m3, 17.5),
        (formats.e4m3, 480.0),
        (formats.e4m3, float("inf")),
        (formats.e2m1, float("nan")),
        (formats.e2m1, float("inf")),
        (formats.e8m0, 0.0),
        (formats.e8m0, -1.0),
        (formats.e5m2, 1e-30),
    ],
    ids=str,
)
def test_encode_refuses_what_the_format_does_not_hold(fmt: FloatFormat, value: float) -> None:
    with pytest.raises(ValueError, match="encode"):
        fmt.encode(torch.tensor([1.0, value]))


def test_named_formats_are_found_and_a_wrong_name_gets_the_nearest() -> None:
    for name, fmt in formats.NAMED.items():
        assert formats.get(name) == fmt
    with pytest.raises(ValueError, match="did you mean 'e4m3'"):
        formats.get("e4m3x")
