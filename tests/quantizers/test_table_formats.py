"""Formats that are a list of values, against exact fractions and other people's code."""

from __future__ import annotations

import math
import pickle
from bisect import bisect, bisect_left
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from recorded_results import Recorded, recorded
from torch import Tensor

from quantizers import (
    QTensor,
    Quantizer,
    Scale,
    TableFormat,
    blocks,
    dynamic8,
    formats,
    minmax,
    nf4,
    per_axis,
    per_tensor,
    random_bits,
    root_key,
    round_to_table,
    stochastic,
    udynamic8,
)
from quantizers.scales.clipping import ClippingScaleWarning

NEAR_ZERO = TableFormat((-(2.0**-100), 1.0))  # its midpoint, below 1/2, is none of fp64's
ODD = TableFormat((-3.0, -0.75, 0.25, 0.5, 1024.0), name="odd")
POSITIVE = TableFormat((0.5, 1.5, 4.0))
TABLES = [nf4, dynamic8, udynamic8, NEAR_ZERO, ODD, POSITIVE]


def fp32(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def near(table: TableFormat, dtype: torch.dtype) -> Tensor:
    """All values, midpoints and both neighbours of each, what lies beyond, and others."""
    middles = [(a + b) / 2 for a, b in zip(table.values, table.values[1:], strict=False)]
    x = torch.tensor([*table.values, *middles, 0.0, -0.0, 1e-45, 3e38, -3e38], dtype=dtype)
    up, down = (torch.nextafter(x, x.new_tensor(end)) for end in (math.inf, -math.inf))
    drawn = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return torch.cat([x, up, down, drawn * table.largest])


def by_hand(value: float, table: TableFormat) -> float:
    """The nearest value, of two that are as near the lower, in exact fractions."""
    place = bisect(table.values, value)
    close = table.values[max(place - 2, 0) : place + 2]
    return min(close, key=lambda v: (abs(Fraction(v) - Fraction(value)), v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_the_nearest_value_of_exact_fractions(table: TableFormat, dtype: torch.dtype) -> None:
    x = near(table, dtype)
    found = round_to_table(x, table)
    assert found.dtype == dtype and found.tolist() == [by_hand(v, table) for v in x.tolist()]
    assert torch.equal(table.decode(table.encode(found)), found.float())
    assert not torch.signbit(found[found == 0]).any()


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_what_is_not_finite_is_nan_unless_it_was(table: TableFormat) -> None:
    x = fp32(math.nan, math.inf, -math.inf)
    assert round_to_table(x, table).isnan().all()
    found = round_to_table(x, table, source=fp32(math.nan, 1e38, -1e38))
    assert found[1:].tolist() == [table.high, table.low] and found[0].isnan()


@pytest.mark.parametrize("bits", [1, 23])
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_stochastic_is_a_comparison_with_the_distance(table: TableFormat, bits: int) -> None:
    x = near(table, torch.float32)
    noise = random_bits(root_key(bits), x.shape)
    found = round_to_table(x, table, stochastic(bits), noise).tolist()
    for value, word, own in zip(x.tolist(), noise.tolist(), found, strict=True):
        low = table.values[max(bisect(table.values, value) - 1, 0)]
        high = table.values[min(bisect_left(table.values, value), len(table.values) - 1)]
        draw = Fraction(2 * ((word & 0xFFFFFFFF) >> (32 - bits)) + 1, 2 ** (bits + 1))
        width = Fraction(high) - Fraction(low)
        if not width:
            assert own == low
            continue
        fraction = (Fraction(value) - Fraction(low)) / width
        if abs(fraction - draw) > 2.0**-50:
            assert own == (high if draw < fraction else low)


@pytest.mark.parametrize("granularity", [per_tensor, per_axis(0), blocks(8)], ids=str)
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_quantizer_scales_the_largest_magnitude_to_the_tables(
    table: TableFormat, granularity: Any
) -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(2)).exp()
    x = x * fp32(*([1.0, -1.0] * 10))
    q = Quantizer(format=table, granularity=granularity)(x)
    assert q.scale is not None and q.format == table and q.elements.dtype == torch.float32
    scale = q.spread(q.scale).expand_as(x)
    spread = QTensor(x, q.scale, None, table, q.block)
    for index in range(q.scale.numel()):
        own = spread.spread(torch.arange(q.scale.numel()).view_as(q.scale)).expand_as(x) == index
        assert q.scale.flatten()[index] == (x[own].abs().max() / table.largest)
    wanted = [by_hand(v, table) for v in (x / scale).flatten().tolist()]
    assert q.elements.flatten().tolist() == wanted
    assert torch.equal(q.dequantize(), q.elements * scale)


def test_zeros_halves_and_wide_tensors() -> None:
    for table in (nf4, udynamic8):
        q = Quantizer(format=table)(torch.zeros(3, 4))
        assert not q.dequantize().any() and q.scale == 0
    x = torch.randn(4, 8)
    for dtype in (torch.float16, torch.bfloat16):
        own, wide = Quantizer(format=nf4)(x.to(dtype)), Quantizer(format=nf4)(x.to(dtype).float())
        assert torch.equal(own.elements, wide.elements)
    assert Quantizer(format=nf4)(x.double()).elements.dtype == torch.float64
    infinite = Quantizer(format=nf4, granularity=per_axis(0))(fp32(1.0, math.inf).view(2, 1))
    assert torch.isfinite(infinite.dequantize()).flatten().tolist() == [True, False]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("table", [nf4, dynamic8, ODD], ids=str)
def test_stochastic_elements_are_unbiased_where_they_reach(table: TableFormat) -> None:
    x = torch.linspace(table.low, table.high, 101)[1:-1]
    x[0] = table.high
    by = Quantizer(format=table, rounding=stochastic())
    n = 1000
    found = torch.stack([by(x, key=root_key(step)).dequantize() for step in range(n)]).double()
    gap = max(b - a for a, b in zip(table.values, table.values[1:], strict=False))
    error = (found.mean(0) - x).abs()
    low = round_to_table(x, table)
    assert bool((error <= 5 * gap / 2 / n**0.5).all()) and bool((found != low).any())
    with pytest.warns(ClippingScaleWarning):
        Quantizer(format=table, rounding=stochastic(), scale=Scale("e4m3"))


@pytest.mark.parametrize("clip", ["inclusive", "strict"])
def test_gradients_stop_beyond_the_ends(clip: Any) -> None:
    by = Quantizer(format=dynamic8, range=None, straight_through=clip)
    x = fp32(-1.0, dynamic8.low, -0.9, 0.0, 1.0, 1.1)
    passed = by.backward(torch.ones(6), x, None)
    assert passed.tolist() == [0, clip == "inclusive", 1, 1, clip == "inclusive", 0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rounding": "floor"}, "rounding: got floor for nf4.*nearest_even"),
    ({"rounding": "half_away"}, "rounding: got half_away"),
    ({"scale": Scale("e8m0", rule="rceil")}, r"scale\.rule: got 'rceil' for nf4"),
    ({"scale": Scale("e8m0", rule="ocp_floor")}, r"scale\.rule: got 'ocp_floor'.*amax"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_settings_that_need_steps_or_exponents_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(format=nf4, **settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0,), "got 1 of them, need 2 to 256"),
        (tuple(range(257)), "got 257 of them"),
        ((0.0, 0.0), r"got 0\.0 behind 0\.0, need ascending"),
        ((1, 0), "need ascending"),
        ((0.0, 0.1), r"fp32 does not hold 0\.1, need numbers that it does; torch\.tensor"),
        ((0.0, math.inf), "values: got inf"),
        ((0.0, "1"), "values: got '1'"),
        (3, "values: got 3, need a tuple"),
    ],
)
def test_values_that_are_no_table_are_refused(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        TableFormat(values)


def test_a_table_is_a_value() -> None:
    assert TableFormat([0, 1, 2]) == TableFormat((0.0, 1.0, 2.0))  # type: ignore[arg-type]
    for table in TABLES:
        assert pickle.loads(pickle.dumps(table)) == table and hash(table) == hash(replace(table))
    assert (nf4.bits, dynamic8.bits, ODD.bits, POSITIVE.bits) == (4, 8, 3, 2)
    assert (ODD.low, ODD.high, ODD.largest, ODD.smallest) == (-3.0, 1024.0, 1024.0, 0.25)
    assert nf4.signed and dynamic8.signed and not udynamic8.signed
    assert [formats.get(name) for name in ("nf4", "dynamic8")] == [nf4, dynamic8]
    assert "nf4" in repr(nf4) and str(POSITIVE) == "table of 3 values up to 4"
    with pytest.raises(ValueError, match="encode"):
        nf4.encode(fp32(0.5))


def test_the_maps_are_bitsandbytes_and_torchaos() -> None:
    for signed, own in ((True, dynamic8), (False, udynamic8)):
        (case,) = recorded("bitsandbytes", "create_dynamic_map", signed=signed)
        assert torch.equal(case["map"], fp32(*own.values))
        name = f"8-bit, {'signed' if signed else 'unsigned'}"
        (case,) = recorded("torchao", "create_dynamic_map", map=name)
        assert torch.equal(case["map"], fp32(*own.values))
    (case,) = recorded("bitsandbytes", "get_4bit_type", typename="nf4")
    assert torch.equal(case["map"], fp32(*nf4.values))


@pytest.mark.parametrize("case", recorded("bitsandbytes", "quantize_4bit"), ids=str)
def test_nf4_is_bitsandbytes(case: Recorded) -> None:
    q = Quantizer(format=nf4, granularity=blocks(None))(case.x.reshape(-1, 64))
    assert q.scale is not None and torch.equal(q.scale.flatten(), case["scale"].flatten())
    assert torch.equal(nf4.encode(q.elements).flatten(), case["codes"].flatten().long())


#: torchao's scales end at 1e-12, above those of "tiny"
_MAPPED = [case for case in recorded("torchao", "with_qmap") if case.data not in ("tiny", "zeros")]


@pytest.mark.parametrize("case", _MAPPED, ids=str)
def test_the_maps_of_optimizer_states_are_torchaos_but_for_ties(case: Recorded) -> None:
    """torchao takes the upper of two values that are as near, bitsandbytes' kernels the lower."""
    made = "get_qmap" if case.settings["map"] == "4-bit, unsigned" else "create_dynamic_map"
    (known,) = recorded("torchao", made, map=case.settings["map"])
    table = TableFormat(tuple(known["map"].tolist()))
    x = case.x.abs() if case.settings["input"] == "abs(x)" else case.x
    x = x.reshape(-1, case.settings["group"])
    q = Quantizer(format=table, granularity=blocks(None), range=minmax)(x)
    assert q.scale is not None and torch.equal(q.scale.flatten(), case["scale"].flatten())
    codes, theirs = table.encode(q.elements).flatten(), case["codes"].flatten().long()
    scaled = (x / q.scale).flatten()
    for place in (codes != theirs).nonzero().flatten().tolist():
        low, high = (table.values[int(codes[place]) + up] for up in (0, 1))
        middle = (Fraction(low) + Fraction(high)) / 2
        assert theirs[place] == codes[place] + 1
        assert abs(Fraction(float(scaled[place])) - middle) <= Fraction(2) ** -24
