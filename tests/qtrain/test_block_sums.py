"""Sums in blocks by each of a CPU's units: the bits of the eager path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qtrain.products.blockwise import fused
from qtrain.products.blockwise.rows import Rows, Windows, rows_of
from qtrain.products.blockwise.sums import block_sums
from quantizers import (
    FloatFormat,
    Format,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    e2m1,
    formats,
    int8,
    kernels,
    random_bits,
    root_key,
    uint8,
)
from quantizers.kernels.serving import imported

UNITS = imported("qtrain.products.blockwise.compiled_tile")
FLOAT, DOUBLE = "fp32", "fp64"
INTEGER = "int8" if UNITS is not None and UNITS.has_int8() else FLOAT
#: formats of a and b -> the unit that adds blocks of 16
CASES: list[tuple[Format, Format, str]] = [
    (formats.e2m1, formats.e2m1, INTEGER),
    (formats.e2m1, int8, INTEGER),
    (formats.e2m3, formats.e3m0, INTEGER),
    (int8, IntFormat(4), INTEGER),
    (uint8, formats.e2m1, FLOAT),
    (formats.e3m2, formats.e3m2, FLOAT),
    (formats.e4m3, formats.e4m3, DOUBLE),
    (formats.e4m3, formats.e2m1, DOUBLE),
    (formats.e5m2, formats.e2m1, DOUBLE),
]


def numbers(*shape: int, seed: int) -> Tensor:
    return random_bits(root_key(seed), shape).float() / 2**29


def rows(x: Tensor, fmt: Format, step: int) -> Rows:
    block = Granularity(((-1, step),), rest="each")
    return rows_of(Quantizer(format=fmt, granularity=block)(x), step)


def unit_of(a: Rows, b: Rows, positions: int = 1) -> str | None:
    laid = fused._in_bytes(UNITS, a, b, positions) or fused._in_floats(UNITS, a, b, positions)
    return None if laid is None else {0: FLOAT, 1: DOUBLE, 2: "int8"}[laid.unit]


def check(a: Rows, b: Rows) -> None:
    found = fused.summed(a.elements, a, b)
    assert found is not None
    with kernels.eager():
        expected = block_sums(a, b)
    assert found.shape == expected.shape
    same = (found.view(torch.int32) == expected.view(torch.int32)) | (
        found.isnan() & expected.isnan()
    )
    assert same.all(), (found - expected).abs().max()


@pytest.mark.parametrize(("one", "other", "unit"), CASES, ids=str)
def test_every_unit_has_the_eager_bits(one: Format, other: Format, unit: str) -> None:
    for i, j, k, step in ((5, 70, 48, 16), (4, 18, 21, 16), (33, 130, 7, 3), (1, 1, 1, 1)):
        a, b = rows(numbers(i, k, seed=1), one, step), rows(numbers(j, k, seed=2), other, step)
        assert step != 16 or unit_of(a, b) == unit
        check(a, b)
        batches = numbers(3, i, k, seed=3), numbers(3, j, k, seed=4)
        check(rows(batches[0], one, step), rows(batches[1], other, step))
        check(rows(batches[0], one, step), rows(batches[1][:1], other, step))
        check(rows(batches[0][:1], one, step), rows(batches[1], other, step))


@pytest.mark.parametrize(("one", "other", "unit"), CASES[::4], ids=str)
def test_scales_as_far_apart_as_they_may_be(one: Format, other: Format, unit: str) -> None:
    a, b = rows(numbers(6, 64, seed=1), one, 16), rows(numbers(40, 64, seed=2), other, 16)
    for factor, second in (
        (1e-30, 1e-12), (1e-38, 1e-7), (1e-44, 1.0), (1e-44, 1e30), (1e30, 1e7), (1e38, 1e-38),
        (0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1e-44, float("inf")),
    ):  # fmt: skip
        spread = torch.tensor([1.0, factor, 0.7 * factor, 1.3])
        c = a._replace(scale=torch.ones(6, 4) * spread)
        check(c, b._replace(scale=torch.ones(40, 4) * second * 0.9))
    check(a._replace(scale=None), b)
    check(a, b._replace(scale=None))
    check(a._replace(scale=None), b._replace(scale=None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.3, 200.0])
def test_elements_that_bytes_do_not_hold_go_to_wider_units(bad: float) -> None:
    for place in (0, 1):
        pair = [rows(numbers(n, 40, seed=n), formats.e2m1, 16) for n in (5, 70)]
        pair[place].elements[3, 33] = bad
        assert unit_of(*pair) != "int8"
        if not bad == 0.3:  # whose sums fp32 rounds
            check(*pair)


def test_columns_that_are_laid_out_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_AT_ONCE", 2**11)
    for fmt in (formats.e4m3, formats.e3m2):
        a, b = rows(numbers(3, 6, 40, seed=1), fmt, 16), rows(numbers(3, 200, 40, seed=2), fmt, 16)
        check(a, b)
        check(a, b._replace(scale=None))


@pytest.mark.parametrize(("one", "unit"), [(formats.e2m1, INTEGER), (formats.e4m3, DOUBLE)])
def test_rows_put_together_from_places(one: Format, unit: str) -> None:
    """With positions that meet none; terms of a position no multiple of the block."""
    table = np.array([[0, 1, -1], [4, -1, -1], [2, 3, 0], [-1, -1, -1], [1, 1, 1]], np.int64)
    for batch, terms in ((1, 20), (2, 16)):
        a = rows(numbers(batch, 10, terms, seed=5), one, 16)._replace(windows=Windows(table, 5))
        padded = -(-terms // 16) * 16
        b = rows(numbers(batch, 67, 3 * padded, seed=6), one, 16)
        check(a, b)
        assert unit_of(a, b, 3) == unit


def test_quantized_operands_keep_the_unit_of_their_format() -> None:
    q = Quantizer(format=formats.e2m1)(numbers(4, 8, seed=1))
    assert rows_of(q, 8)[2:5] == (8, 0.5, 12)
    assert rows_of(QTensor(q.elements), 8)[2:5] == (8, 1.0, None)


@pytest.mark.parametrize(
    ("format", "size", "other"),
    [
        (FloatFormat(3, 2, bias=80, specials="finite"), 1.0, 1.0),  # products below 2^-126
        (e2m1, 6e-45, 1e30),  # scales times units, too
    ],
    ids=str,
)
def test_products_below_fp32s_normal_numbers_are_not_lost(
    format: Format, size: float, other: float
) -> None:
    a = rows(numbers(6, 64, seed=1).sign() * size, format, 16)
    b = rows(numbers(40, 64, seed=2) * other, format, 16)
    check(a, b)
    assert block_sums(a, b).abs().max() > 0
