from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from qtrain.norms import deviations
from qtrain.norms.constants import (
    Constant,
    expected_largest,
    expected_range,
    largest_factor,
    range_factor,
)
from qtrain.norms.deviations import Deviation, l1, l2, linf, range_, topk

EXACT = [l2(), l1(), linf(), topk(), topk(3), range_(), range_(16)]

# n, E[range], then sigma on a unit Gaussian with the constants "code" and "paper" of range, and
# "code" of linf: computed once by another route and printed to three digits.
TABLE = [
    (16, 3.532, 0.810, 1.500, 1.362),
    (256, 5.654, 0.917, 1.698, 1.411),
    (4096, 7.252, 0.961, 1.778, 1.439),
    (50176, 8.463, 0.983, 1.819, 1.455),
    (802816, 9.638, 0.999, 1.848, 1.467),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"n={row[0]}")
def test_constants_reproduce_the_calibration_table(row: tuple[float, ...]) -> None:
    n = int(row[0])
    ours = (
        expected_range(n),
        range_factor("code", n) * expected_range(n),
        range_factor("paper", n) * expected_range(n),
        largest_factor("code", n, 1) * expected_largest(n, 1),
    )
    # half a unit of the last printed digit, and as much for the table's own rounding
    assert ours == pytest.approx(row[1:], abs=1e-3)


def test_expectations_equal_their_closed_forms() -> None:
    # rel: float64 quadrature of smooth functions, over sums of up to 500 terms
    assert expected_range(2) == pytest.approx(2 / math.sqrt(math.pi), rel=1e-12)
    assert expected_range(3) == pytest.approx(3 / math.sqrt(math.pi), rel=1e-12)
    assert expected_largest(2, 1) == pytest.approx(2 / math.sqrt(math.pi), rel=1e-12)
    for n in (1, 10, 500):  # all of them: the mean magnitude
        assert expected_largest(n, n) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-11)


@pytest.mark.parametrize("n", [4, 5, 37, 256, 4096, 65536])
@pytest.mark.parametrize("deviation", EXACT, ids=str)
def test_exact_deviation_is_one_on_a_unit_gaussian(deviation: Deviation, n: int) -> None:
    trials = max(32, 2**20 // n)
    sigma = deviation.estimate(torch.randn(trials, n, generator=generator(n))).sigma.double()
    if deviation == l2():
        sigma = sigma.square()  # a variance about a known mean is unbiased, its root is not
    # 5 sigma of the mean of `trials` independent estimates
    assert abs(sigma.mean() - 1) < 5 * sigma.std() / math.sqrt(trials)


@pytest.mark.parametrize("chunks", [1, 3, 16])
def test_exact_range_is_one_about_the_sample_mean_too(chunks: int) -> None:
    x = torch.randn(2**16, 11, generator=generator(1))
    sigma = range_(chunks).estimate(x - x.mean(1, keepdim=True)).sigma
    assert abs(sigma.mean() - 1) < 5 * sigma.std() / 2**8  # n = 2^16, 5 sigma


def test_ragged_chunks_cover_every_element_once() -> None:
    # 11 elements in 3 chunks: 4, 4, 3; each chunk's extremes and constant are its own
    x = torch.tensor([[3.0, 0, 1, 2, 9, 8, 7, 6, 20, 21, 22]])
    sigma, where, slope = range_(3).estimate(x)
    assert where is not None and slope is not None
    assert where.tolist() == [[0, 4, 1, 7, 10, 8]]
    c4, c3 = 1 / expected_range(4) / 3, 1 / expected_range(3) / 3
    torch.testing.assert_close(slope, torch.tensor([[c4, c4, -c4, -c4, c3, -c3]]))
    torch.testing.assert_close(sigma, torch.tensor([3 * c4 + 3 * c4 + 2 * c3]))


def test_small_batches_have_fewer_chunks_and_fewer_largest() -> None:
    x = torch.randn(4, 3, generator=generator())
    assert torch.equal(range_(16).estimate(x).sigma, range_(1).estimate(x).sigma)
    assert torch.equal(topk(10).estimate(x).sigma, topk(3).estimate(x).sigma)


@pytest.mark.parametrize("deviation", [linf(), range_()], ids=str)
def test_first_of_equal_extremes_carries_the_gradient(deviation: Deviation) -> None:
    where = deviation.estimate(torch.tensor([[0.0, 2, -2, 2, -2, 0]])).where
    assert where is not None
    assert where.tolist() == ([[1]] if deviation == linf() else [[1, 2]])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("deviation", EXACT, ids=str)
def test_one_non_finite_element_makes_its_channel_non_finite(
    deviation: Deviation, bad: float
) -> None:
    x = torch.randn(2, 64, generator=generator())
    x[1, 40] = bad
    assert deviation.estimate(x).sigma.isfinite().tolist() == [True, False]


def test_paper_and_code_constants_are_those_published() -> None:
    x = torch.randn(3, 100, generator=generator())
    width = x.amax(1) - x.amin(1)
    root = math.sqrt(2 * math.log(100))
    torch.testing.assert_close(range_(1, "paper").estimate(x).sigma, width / root)
    # 0.5402: printed to four digits
    torch.testing.assert_close(
        range_(1, "code").estimate(x).sigma, 0.5402 * width / root, rtol=1e-4, atol=0
    )
    largest = x.abs().amax(1)
    torch.testing.assert_close(
        linf("code").estimate(x).sigma, 1.5435 * largest / root, rtol=1e-4, atol=0
    )
    assert torch.equal(l1("paper").estimate(x).sigma, l1("exact").estimate(x).sigma)


@pytest.mark.parametrize("name", deviations.names())
def test_deviation_is_found_by_its_name(name: str) -> None:
    assert deviations.get(name).name == name


def test_unknown_deviation_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'rnage'.*did you mean 'range'"):
        deviations.get("rnage")


@pytest.mark.parametrize("make", [l1, linf, topk, range_], ids=lambda make: make.__name__)
def test_unknown_constant_is_refused(make: type) -> None:
    with pytest.raises(ValueError, match="constant: got 'poster'"):
        make(constant="poster")


@pytest.mark.parametrize(("make", "constant"), [(linf, "paper"), (topk, "paper"), (l1, "code")])
def test_constant_that_was_never_published_is_refused(make: type, constant: Constant) -> None:
    with pytest.raises(ValueError, match=f"constant: got '{constant}', need one of exact"):
        make(constant=constant)


def test_counts_must_be_positive_integers() -> None:
    with pytest.raises(ValueError, match=r"topk\.k: got 0"):
        topk(0)
    with pytest.raises(TypeError, match=r"range\.chunks: got True"):
        range_(True)
    with pytest.raises(TypeError, match=r"range\.chunks: got 1\.5"):
        range_(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [l2, l1, linf, topk, range_], ids=lambda make: make.__name__)
def test_times_multiplies_sigma_and_its_slope(make: Callable[..., Deviation]) -> None:
    x = torch.randn(5, 100, generator=generator(), dtype=torch.float64)
    once, often = make().estimate(x), make(times=0.3).estimate(x)
    # float64 rounding only, of a product taken in another order
    torch.testing.assert_close(often.sigma, 0.3 * once.sigma, rtol=1e-15, atol=0)
    if once.slope is not None:
        assert once.where is not None and often.where is not None
        torch.testing.assert_close(often.slope, 0.3 * once.slope, rtol=1e-15, atol=0)
        assert torch.equal(often.where, once.where)
    for a, b in zip(make(times=1).estimate(x), once, strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("make", [l2, l1, linf, topk, range_], ids=lambda make: make.__name__)
@pytest.mark.parametrize("times", [0, -1.0, math.nan, math.inf], ids=str)
def test_times_must_be_finite_and_positive(make: Callable[..., Deviation], times: float) -> None:
    with pytest.raises(ValueError, match=rf"\.times: got {times}, need a finite number above 0"):
        make(times=times)
    with pytest.raises(TypeError, match=r"\.times: got '4'"):
        make(times="4")


def test_times_is_shown_where_it_is_not_one() -> None:
    given = [l2(times=4), l1(times=0.25), topk(3, times=4), range_(2, "code", times=4)]
    assert [str(deviation) for deviation in given] == [
        "l2(times=4)",
        "l1(exact, times=0.25)",
        "topk(3, exact, times=4)",
        "range(chunks=2, code, times=4)",
    ]
    assert [str(l2(times=1)), str(l1(times=1))] == ["l2", "l1(exact)"]


def test_equal_settings_are_equal_deviations() -> None:
    assert topk(5) == topk(5) != topk(6)
    assert hash(range_(2)) == hash(range_(2))
    assert str(range_(16, "code")) == "range(chunks=16, code)"
