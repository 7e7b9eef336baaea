"""Accumulators against exact fractions, numpy's and ml_dtypes' arithmetic, Python's integers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import copysign, frexp, inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from quantizers import (
    FloatFormat,
    Rounding,
    accumulate,
    accumulators,
    bf16,
    ceil,
    e4m3,
    e5m2,
    floor,
    fold,
    formats,
    fp16,
    fp32,
    half_away,
    nearest_even,
    random_bits,
    root_key,
    round_to,
    stochastic,
    tf32,
    toward_zero,
)
from quantizers.accumulators import Accumulator

E6M9 = FloatFormat(6, 9)
M7E4 = FloatFormat(4, 7, specials="finite")
KEY = root_key(5)
DETERMINISTIC = [nearest_even, half_away, toward_zero, floor, ceil]


def oracle(x: Fraction, format: FloatFormat, rounding: Rounding, draw: int = 0) -> float:
    """x rounded to the format, in integers; draw: 32 random bits."""
    if x == 0:
        return 0.0
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, format.min_exponent) - format.mantissa)
    whole, rest = divmod(size / step, 1)
    up = {
        "nearest_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "half_away": rest >= Fraction(1, 2),
        "toward_zero": False,
        "floor": x < 0 and rest > 0,
        "ceil": x > 0 and rest > 0,
        "stochastic": Fraction(2 * ((draw % 2**32) >> (32 - rounding.random_bits)) + 1, 2)
        < rest * 2**rounding.random_bits
        if rounding.random_bits
        else False,
    }[rounding.mode]
    found = (whole + up) * step
    if found > Fraction(format.largest):
        found = Fraction(format.largest) if format.on_overflow == "saturate" else None
    value = inf if found is None else float(found)
    return copysign(value, -1 if x < 0 else 1)


Number = float | Fraction


def running(a: Any, b: Any, start: float, unit: Any, draw: Any) -> Number:
    """`Sequential`'s sum of one output; draw: the random bits of a number."""

    def rounded(x: Number, number: int, format: FloatFormat | None = None) -> Number:
        if not isfinite(x):
            return x
        return oracle(Fraction(x), format or unit.format, unit.rounding, draw(number))

    def plus(x: Number, y: Number) -> Number:
        return Fraction(x) + Fraction(y) if isfinite(x) and isfinite(y) else float(x) + float(y)

    def added(total: Number, terms: Any) -> Number:
        lost: Number = 0.0
        for number, term in terms:
            if unit.compensated:
                term = rounded(plus(term, -lost), 0)
                grown = rounded(plus(total, term), 0)
                lost = rounded(plus(rounded(plus(grown, -total), 0), -term), 0)
                total = grown
            else:
                total = rounded(plus(total, term), 2 * number)
        return total

    products: list[Number] = [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)]
    if unit.product is not None:
        products = [rounded(p, 2 * k + 1, unit.product) for k, p in enumerate(products)]
    first = oracle(Fraction(start), unit.format, nearest_even) if isfinite(start) else start
    if unit.chunk is None:
        return added(first, enumerate(products))
    parts = []
    for place in range(0, len(products), unit.chunk):
        own = products[place : place + unit.chunk]
        if unit.inside == "exact":
            parts.append(rounded(sum(own, Fraction(0)), 2 * place))
        else:
            parts.append(added(0.0, enumerate(own, place)))
    return added(first, enumerate(parts, len(products)))


def drawn(format: FloatFormat, *shape: int, seed: int, spread: float = 1.0) -> Tensor:
    """Elements of the format: of all magnitudes, zeros and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * spread
    x = x * torch.exp2(torch.randint(-6, 7, shape, generator=generator).float())
    x[torch.rand(*shape, generator=generator) < 0.1] = 0.0
    return round_to(x, format)


UNITS = [
    accumulators.sequential(format, rounding=rounding)
    for format in (fp16, bf16, fp32, E6M9, M7E4, formats.e5m2)
    for rounding in (*DETERMINISTIC, stochastic(), stochastic(3))
] + [
    accumulators.sequential(fp16, chunk=7),
    accumulators.sequential(E6M9, chunk=64),
    accumulators.sequential(E6M9, chunk=5, product=E6M9),
    accumulators.sequential(fp16, product=fp16),
    accumulators.sequential(bf16, product=fp32, rounding=stochastic()),
    accumulators.sequential(fp16, chunk=8, inside="exact"),
    accumulators.sequential(bf16, chunk=8, inside="exact", rounding=stochastic(8)),
    accumulators.sequential(bf16, chunk=6, rounding=stochastic()),
    accumulators.sequential(fp16, compensated=True),
    accumulators.sequential(bf16, compensated=True, chunk=9),
    accumulators.sequential(bf16, compensated=True, product=bf16, rounding=toward_zero),
]


@pytest.mark.parametrize("spread", [2.0**-9, 1.0, 2.0**6], ids="x {}".format)
@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_sequential_sums_are_those_of_fractions(unit: Any, spread: float) -> None:
    a, b = drawn(fp16, 3, 29, seed=1, spread=spread), drawn(e5m2, 3, 29, seed=2, spread=spread)
    start = drawn(unit.format, 3, seed=3, spread=spread * spread)
    got = accumulate(a, b, unit, start, key=KEY)
    assert got.dtype == torch.float32 and got.shape == (3,)
    for i in range(3):

        def draw(number: int, i: int = i) -> int:
            return int(random_bits(fold(KEY, number), (3,))[i])

        want = running(a[i].tolist(), b[i].tolist(), float(start[i]), unit, draw)
        assert same(float(got[i]), float(want)), i


def same(x: float, y: float) -> bool:
    return x == y or (isnan(x) and isnan(y))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=str)
def test_products_rounded_first_are_numpys_loop(dtype: Any) -> None:
    format = {"float16": fp16, "bfloat16": bf16, "float32": fp32}[np.dtype(dtype).name]
    unit = accumulators.sequential(format, product=format)
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 8, 300)).astype(dtype)
    total = np.zeros(8, dtype)
    for k in range(300):
        total = total + a[:, k] * b[:, k]
    got = accumulate(*(torch.from_numpy(x.astype(np.float32)) for x in (a, b)), unit)
    assert torch.equal(got, torch.from_numpy(total.astype(np.float32)))


def test_a_sum_that_overflows_is_what_its_format_states() -> None:
    a, b = torch.full((2, 9), 60000.0), torch.tensor([[1.0], [-1.0]]).expand(2, 9)
    ends = {fp16: inf, bf16: None, M7E4: M7E4.largest, replace(fp16, overflow="nan"): nan}
    for format, end in ends.items():
        got = accumulate(a, b, accumulators.sequential(format)).tolist()
        assert end is None or all(same(x, y) for x, y in zip(got, (end, -end), strict=True))
    held = accumulate(torch.tensor([3.0, inf, 1.0]), torch.ones(3), accumulators.sequential(fp16))
    assert held == inf  # an infinite operand is none of the format's overflows
    both = torch.tensor([inf, -inf, 1.0])
    for unit in (
        accumulators.sequential(fp16),
        accumulators.exact(),
        accumulators.get("A100", "fp16"),
    ):
        assert accumulate(both, torch.ones(3), unit).isnan()


@pytest.mark.parametrize("scale", [2.0**-140, 1.0, 2.0**60], ids="x {}".format)
def test_exact_sums_are_rounded_once(scale: float) -> None:
    a = drawn(fp32, 12, 50, seed=4) * scale
    b = drawn(fp32, 12, 50, seed=5)
    a[:4, 25:], b[:4, 25:] = a[:4, :25], -b[:4, :25]  # cancel, but for the start
    a[4:8, 25:], b[4:8, 25:] = -a[4:8, :25], b[4:8, :25]
    start = drawn(fp32, 12, seed=6) * 2.0**-120
    a[8, :2], b[8, :2], start[8] = 2.0**40, torch.tensor([2.0**40, 2.0**16]), -(2.0**-149)  # a tie
    a[8, 2:] = 0
    got = accumulate(a, b, accumulators.exact(), start)
    for i in range(12):
        products = [
            Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b[i].tolist(), strict=True)
        ]
        want = oracle(sum(products, Fraction(float(start[i]))), fp32, nearest_even)
        assert float(got[i]) == want, i


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_integer_sums_are_pythons(bits: int, overflow: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (5, 70), generator=draw, dtype=torch.int8) for _ in "ab")
    a[0], b[0] = 127, 127
    start = torch.tensor([100, -100, 0, 5, -5])
    got = accumulate(a, b, accumulators.integer(bits, overflow=overflow), start)
    assert got.dtype == torch.int64
    half = 2 ** (bits - 1)
    for i, total in enumerate(start.tolist()):
        for x, y in zip(a[i].tolist(), b[i].tolist(), strict=True):
            total += x * y
            total = (total + half) % (2 * half) - half if overflow == "wrap" else total
            total = max(-half, min(half - 1, total))
        assert got[i] == total


def aligned(a: Any, b: Any, total: Fraction, unit: Any, least: tuple[int, int]) -> Fraction:
    """`Aligned`'s sum of one output, in fractions; least: the smallest exponents of a and b."""

    def exponent(x: float | Fraction, smallest: int) -> int:
        return max(smallest, frexp(float(x))[1] - 1) if x else smallest

    def cut(x: Fraction, step: Fraction) -> Fraction:
        return int(x / step) * step  # toward zero

    outer = Fraction(0) if unit.promote is None else total
    total = total if unit.promote is None else Fraction(0)
    for first in range(0, len(a), unit.terms):
        own = range(first, min(first + unit.terms, len(a)))
        tops = [exponent(a[k], least[0]) + exponent(b[k], least[1]) for k in own]
        step = Fraction(2) ** (max(*tops, exponent(total, -126)) - unit.bits)
        found = sum((cut(Fraction(a[k]) * Fraction(b[k]), step) for k in own), cut(total, step))
        total = cut(found, Fraction(2) ** (exponent(found, -126) - unit.kept))
        end = own.stop
        if unit.promote is not None and (end % unit.promote == 0 or end == len(a)):
            outer = Fraction(oracle(outer + total, fp32, nearest_even))
            total = Fraction(0)
    return total if unit.promote is None else outer


@pytest.mark.parametrize("promote", [None, 64])
@pytest.mark.parametrize("gpu", ["V100", "A100", "Ada", "H100"])
def test_aligned_sums_are_those_of_fractions(gpu: str, promote: int | None) -> None:
    name = {"V100": "fp16", "A100": "bf16", "Ada": "e4m3", "H100": "e5m2"}[gpu]
    format = formats.NAMED[name]
    assert isinstance(format, FloatFormat)
    unit = accumulators.get(gpu, name, promote=promote)
    for spread in (2.0**-9, 1.0):  # subnormal elements, too
        a, b = (drawn(format, 6, 150, seed=s, spread=spread) for s in (7, 8))
        start = drawn(fp32, 6, seed=9, spread=spread)
        got = accumulate(a, b, unit, start, formats=(format, format))
        for i in range(6):
            least = format.min_exponent, format.min_exponent
            want = aligned(a[i].tolist(), b[i].tolist(), Fraction(float(start[i])), unit, least)
            assert Fraction(float(got[i])) == want, i


def test_the_formats_say_where_subnormal_elements_stand() -> None:
    """A zero beside the largest element reaches further up than a small product."""
    unit = accumulators.aligned(terms=2, bits=3)
    a, b = torch.tensor([0.0, 2.0**-9]), torch.tensor([256.0, 1.0])
    assert accumulate(a, b, unit, formats=(e4m3, e4m3)) == 0  # -6 + 8 = 2 above -9
    assert accumulate(a, b, unit) == 2.0**-9


REFUSED: dict[str, tuple[Any, str]] = {
    "no accumulator": (lambda: accumulate(ONE, ONE, fp16), "accumulator: got"),  # type: ignore[arg-type]
    "shapes": (lambda: accumulate(ONE, ONE[:1], accumulators.exact()), r"need \(\.\.\., K\)"),
    "start": (lambda: accumulate(ONE, ONE, accumulators.exact(), ONE), "start: got"),
    "no key": (
        lambda: accumulate(ONE, ONE, accumulators.sequential(fp16, rounding=stochastic())), "key"
    ),
    "fractions": (lambda: accumulate(ONE / 2, ONE, accumulators.integer(8, overflow="wrap")), "a:"),
    "fp64": (lambda: accumulate(ONE.double() / 3, ONE, accumulators.exact()), "exact in fp32"),
    "a unit's formats": (
        lambda: accumulate(ONE, ONE, accumulators.get("H100", "fp16"), formats=(e4m3, fp16)),
        "got e4m3; unit",
    ),
    "unknown GPU": (lambda: accumulators.get("H10", "fp16"), "did you mean 'H100'"),
    "unknown format": (lambda: accumulators.get("V100", "e4m3"), "V100: fp16"),
    "promote": (lambda: accumulators.get("H100", "e4m3", promote=100), "multiple of terms, 32"),
    "exact without chunk": (lambda: accumulators.sequential(fp16, inside="exact"), "chunk"),
    "exact and products": (
        lambda: accumulators.sequential(fp16, chunk=8, inside="exact", product=fp16), "leave one"
    ),
    "unsigned": (lambda: accumulators.sequential(formats.e8m0), "a sign and a zero"),
    "Kahan by chance": (
        lambda: accumulators.sequential(fp16, compensated=True, rounding=stochastic()), "one of"
    ),
    "overflow": (lambda: accumulators.integer(8, overflow="clip"), "wrap, saturate"),  # type: ignore[arg-type]
    "bits": (lambda: accumulators.integer(1, overflow="wrap"), "bits"),
}  # fmt: skip
ONE = torch.ones(2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_summed_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    "unit",
    [accumulators.exact(), accumulators.sequential(fp16, chunk=2),
     accumulators.get("H100", "e4m3"), accumulators.integer(16, overflow="wrap")],
    ids=str,
)  # fmt: skip
def test_operands_are_broadcast_and_may_be_empty(unit: Accumulator) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (3, 1, 6), generator=draw).float()
    b = torch.randint(-8, 9, (5, 6), generator=draw).float()
    got = accumulate(a, b, unit)
    assert torch.equal(got, (a * b).sum(-1).to(got.dtype))
    assert accumulate(torch.zeros(2, 0), torch.zeros(2, 0), unit).tolist() == [0, 0]
    start = torch.tensor([3.0, 4.0])
    assert accumulate(torch.zeros(2, 0), torch.zeros(2, 0), unit, start).tolist() == [3, 4]


#: what reproduces a set: whether c is part of d
RECORDED = {
    "V100_fp16": True, "A100_fp16": True, "A100_bf16": True, "A100_tf32": True, "H100_fp16": True,
    "H100_bf16": True, "Ada_E4M3": True, "H100_E4M3": False,
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_units_give_what_gpus_gave(name: str, hardware_data: Path) -> None:
    """Every recorded output; of 30 to 100 % the nearest fp32 of the exact sum is another."""
    gpu, _, kind = name.partition("_")
    recorded = np.load(hardware_data / f"{name}.npz")
    a, b, c, d = (torch.from_numpy(recorded[part]) for part in "abcd")
    format = {"fp16": fp16, "bf16": bf16, "tf32": tf32, "E4M3": e4m3}[kind]
    start = c if RECORDED[name] else None
    unit = accumulators.get(gpu, format)
    assert len(d) >= 2500 and torch.equal(accumulate(a, b, unit, start, formats=(format,) * 2), d)
    assert (accumulate(a, b, accumulators.exact(), start) != d).float().mean() > 0.3


def test_near_misses_say_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"unknown unit 'h100', 'e4m3'; did you mean 'H100'\?"):
        accumulators.get("h100", "e4m3")
    with pytest.raises(ValueError, match="unknown unit 'H100', 'e5m3'; known: V100"):
        accumulators.get("H100", "e5m3")
    with pytest.raises(ValueError, match="unknown format 'E4M3'; did you mean 'e4m3'"):
        formats.get("E4M3")
    a, b = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\) and \(2, 5, 4\).*unsqueeze"):
        accumulate(a, b, accumulators.exact())
    product = accumulate(a.unsqueeze(-2), b.unsqueeze(-3), accumulators.exact())
    assert torch.equal(product, torch.full((2, 3, 5), 4.0))
