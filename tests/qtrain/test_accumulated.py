"""Products by an accumulator: kernels give what `accumulate` gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from torch import Tensor

from qtrain.products.accumulated.exact_sums import by_products
from qtrain.products.accumulated.numbers import plain
from qtrain.products.accumulated.sums import _compiled, _spread, accumulated
from quantizers import (
    FloatFormat,
    accumulate,
    accumulators,
    bf16,
    e4m3,
    e5m2,
    fp16,
    fp32,
    half_away,
    int8,
    kernels,
    root_key,
    round_to,
    stochastic,
    toward_zero,
    uint8,
)

KEY = root_key(3)
E6M9 = FloatFormat(6, 9)
sequential = accumulators.sequential
#: accumulators and the formats of the operands
UNITS: list[tuple[Any, tuple[FloatFormat, FloatFormat]]] = [
    (sequential(E6M9), (e5m2, e4m3)),  # terms that the format holds
    (sequential(FloatFormat(4, 7, specials="finite"), chunk=8), (e4m3, e4m3)),
    (sequential(fp16), (fp16, e5m2)),  # and wider ones, whose sums are rounded to odd
    (sequential(bf16), (fp32, fp32)),
    (sequential(fp16, rounding=toward_zero, chunk=5), (e4m3, e4m3)),
    (sequential(bf16, rounding=stochastic(3), product=fp16, chunk=6), (fp16, e4m3)),
    (sequential(fp16, product=fp16), (fp16, fp16)),
    (sequential(bf16, compensated=True, chunk=9), (fp16, fp16)),
    (accumulators.get("V100", "fp16"), (fp16, fp16)),
    (accumulators.get("H100", "e4m3", promote=64), (e4m3, e5m2)),
    (accumulators.get("Ada", "e5m2"), (e5m2, e5m2)),
    (accumulators.integer(12, overflow="saturate"), (fp32, fp32)),
]  # fmt: skip


def drawn(format: FloatFormat, *shape: int, seed: int, spread: float, whole: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * spread
    x = x * torch.exp2(torch.randint(-6, 7, shape, generator=generator).float())
    x[torch.rand(*shape, generator=generator) < 0.1] = 0.0
    return x.round().clamp(-99, 99) if whole else round_to(x, format)


def same(one: Tensor, other: Tensor) -> bool:
    equal = (one == other) & (one.signbit() == other.signbit())
    return one.dtype == other.dtype and bool((equal | (one.isnan() & other.isnan())).all())


@pytest.mark.parametrize("spread", [2.0**-9, 1.0, 2.0**6], ids="x {}".format)
@pytest.mark.parametrize(("unit", "formats"), UNITS, ids=str)
def test_a_kernel_gives_every_bit(unit: Any, formats: Any, spread: float) -> None:
    whole = isinstance(unit, accumulators.Integer)
    a = drawn(formats[0], 2, 5, 41, seed=1, spread=spread, whole=whole)
    b = drawn(formats[1], 2, 70, 41, seed=2, spread=spread, whole=whole)
    want = _spread(a, b, unit, formats, KEY)
    got = _compiled(a, b, unit, formats, KEY)
    assert got is not None and same(got, want)
    with kernels.eager():
        assert same(accumulated(a, b, unit, formats, KEY), want)
    one = _compiled(a, b[:1], unit, formats, KEY)  # shared by both batches
    assert one is not None and same(one, _spread(a, b[:1], unit, formats, KEY))


def test_infinite_operands_and_overflows() -> None:
    a, b = torch.full((3, 9), 60000.0), torch.ones(2, 9)
    a[1, 4], b[1, 3] = float("inf"), -1.0
    a[2, :2] = torch.tensor([float("inf"), float("-inf")])
    for unit in (sequential(fp16), sequential(bf16), accumulators.get("A100", "bf16")):
        got = _compiled(a, b, unit, (None, None), None)
        assert got is not None and same(got, _spread(a, b, unit, (None, None), None))


def test_a_sum_far_below_a_tie_breaks_it() -> None:
    """Products halfway between two numbers of the sum, beside sums of any size."""
    sizes = torch.tensor([0.0, 2.0**-24, 2.0**-9, 1.0, 2.0**15])
    sizes = torch.cat([sizes, -sizes])
    thirds, powers = torch.arange(343.0, 1366.0, 62), 2.0 ** torch.arange(-16.0, 5.0)
    a = torch.stack(torch.meshgrid(sizes, torch.tensor([3 * 2.0**-8, 48.0]), indexing="ij"), -1)
    b = torch.outer(thirds, powers).flatten()
    b = torch.stack([torch.full_like(b, 2.0**-15), b], -1)
    assert (round_to(b, fp16) == b).all()
    for accumulator in (sequential(fp16), sequential(fp16, rounding=half_away), sequential(E6M9)):
        got = _compiled(a.flatten(0, 1), b, accumulator, (fp16, fp16), None)
        want = _spread(a.flatten(0, 1), b, accumulator, (fp16, fp16), None)
        assert got is not None and same(got, want)
    assert plain(sequential(fp16), (fp16, fp16)) and not plain(sequential(E6M9), (fp16, fp16))


def test_a_unit_meets_infinity_with_every_exponent() -> None:
    powers = torch.exp2(torch.arange(-126.0, 128.0))
    ends = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    a, b = torch.ones(2, 3), torch.ones(len(powers) + 4, 3)
    a[:, 1], b[:, 1] = ends[:2], torch.cat([powers, ends])
    for name in ("V100 fp16", "A100 bf16", "H100 bf16"):
        unit = accumulators.get(*name.split())
        got = _compiled(a, b, unit, (None, None), None)
        assert got is not None and same(got, _spread(a, b, unit, (None, None), None))


def test_a_sum_that_ended_at_a_negative_zero_goes_on_at_a_positive_one() -> None:
    unit = accumulators.aligned(terms=1, bits=25, kept=21)
    a, b = torch.tensor([[-(2.0**-133), -0.0]]), torch.tensor([[2.0**-18, 1.0]])
    for terms in (1, 2):
        one, other = a[:, :terms], b[:, :terms]
        got = _compiled(one, other, unit, (None, None), None)
        assert got is not None and same(got, _spread(one, other, unit, (None, None), None))


@pytest.mark.parametrize("spread", [2.0**-9, 1.0, 2.0**6], ids="x {}".format)
def test_exact_sums_by_matrix_products_have_every_bit(spread: float) -> None:
    finite = FloatFormat(4, 7, bias=10, specials="finite")
    for unit, formats, whole in (
        (accumulators.exact(), (e4m3, e4m3), False),
        (accumulators.exact(), (int8, uint8), True),
        (accumulators.integer(9, overflow="wrap"), (int8, int8), True),
        (sequential(E6M9, chunk=16, inside="exact"), (e4m3, e4m3), False),
        (sequential(finite, chunk=7, inside="exact", rounding=toward_zero), (int8, int8), True),
    ):
        own = bf16 if whole else formats[0]  # type: ignore[assignment]
        a = drawn(own, 2, 5, 41, seed=1, spread=spread, whole=whole)
        b = drawn(own, 2, 70, 41, seed=2, spread=spread, whole=whole)
        want, got = _spread(a, b, unit, formats, None), by_products(a, b, unit, formats, None)
        assert got is not None and same(got, want)
        with kernels.eager():
            got = by_products(a, b[:1], unit, formats, None)
        assert got is not None and same(got, _spread(a, b[:1], unit, formats, None))


def test_products_that_fp64_does_not_hold_are_not_so_summed() -> None:
    a, b = torch.ones(2, 3), torch.ones(4, 3)
    for unit in (accumulators.exact(), sequential(E6M9, chunk=2, inside="exact")):
        assert by_products(a, b, unit, (e5m2, e5m2), None) is None
        assert by_products(a, b, unit, (None, e4m3), None) is None
    for unit in (
        sequential(E6M9, chunk=2),
        sequential(E6M9, chunk=2, inside="exact", rounding=stochastic(8)),
        accumulators.integer(9, overflow="saturate"),
    ):
        assert by_products(a, b, unit, (e4m3, e4m3), KEY) is None


def test_what_no_kernel_serves_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (drawn(bf16, 6, 20, seed=s, spread=1.0, whole=False) for s in (1, 2))
    for unit in (
        accumulators.exact(),
        sequential(fp16, chunk=8, inside="exact"),
        accumulators.integer(9, overflow="wrap"),
    ):
        one, other = (
            (x.round() for x in (a, b)) if isinstance(unit, accumulators.Integer) else (a, b)
        )
        assert _compiled(one, other, unit, (None, None), None) is None
        whole = accumulated(one, other, unit, (None, None))
        monkeypatch.setattr("qtrain.products.accumulated.sums._SPREAD", 300)
        assert same(accumulated(one, other, unit, (None, None)), whole)
        monkeypatch.undo()


def test_noise_is_of_elements_of_the_whole_result_in_parts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches, rows and columns that do not fit in one part: the bits of all at once."""
    a = drawn(bf16, 3, 1, 6, 20, seed=1, spread=1.0, whole=False)
    b = drawn(bf16, 2, 7, 20, seed=2, spread=1.0, whole=False)
    unit = sequential(fp16, chunk=8, inside="exact", rounding=stochastic(8))
    whole = accumulate(a.unsqueeze(-2), b.unsqueeze(-3), unit, key=KEY)
    for most in (20, 60, 300, 1000):
        sizes: list[int] = []

        def seen(x: Tensor, *others: Any, sizes: list[int] = sizes, **named: Any) -> Tensor:
            sizes.append(x.numel())
            return accumulate(x, *others, **named)

        monkeypatch.setattr("qtrain.products.accumulated.sums._SPREAD", most)
        monkeypatch.setattr("qtrain.products.accumulated.sums.accumulate", seen)
        assert same(accumulated(a, b, unit, (None, None), KEY), whole)
        assert max(sizes) <= most and sum(sizes) == 3 * 2 * 6 * 7 * 20


def test_a_kernel_is_kept_on_disk_for_each_way_of_rounding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the functions that are made for it alone."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def made(mode: int) -> Any:
        return kernels.made.__wrapped__(
            "qtrain.products.accumulated.compiled_sums", "sums", 0, mode, 1, 0, 0
        )

    assert [made(mode).cache_hits for mode in (0, 1, 0, 1)] == [0, 0, 1, 1]
    assert made(0).address != made(1).address
    assert len(list(tmp_path.rglob("*.nbi"))) == len(list(tmp_path.rglob("*.nbc"))) == 2
