"""What a Monitor finds out about a rounding: by numpy, and on roundings whose errors are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtrain.inspection.distributions import Channels, channels
from qtrain.inspection.pair import TensorPair
from qtrain.inspection.rounding import Rounded, rounded, shared_noise
from qtrain.inspection.sampling import block, cropped
from qtrain.inspection.weight_watch import WeightWatch, numbered, oscillation, parameter
from quantizers import (
    IntFormat,
    QTensor,
    Quantizer,
    Rounding,
    bf16,
    e4m3,
    floor,
    int8,
    minmax,
    per_axis,
    root_key,
    stochastic,
)

AFFINE = IntFormat(8, signed=False, symmetric=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coded(position: Tensor, codes: Tensor, scale: float = 0.5) -> Rounded:
    """What is found of int8 codes for values at `position` steps."""
    q = QTensor(codes.to(torch.int8), torch.tensor([scale]), None, int8, (codes.numel(),))
    found = rounded(TensorPair((position * scale).flatten(), q))
    assert found is not None
    return found


def by(rounding: Rounding, x: Tensor, seed: int = 1) -> Rounded:
    q = Quantizer(format=int8, rounding=rounding)(x, key=root_key(seed))
    found = rounded(TensorPair(x, q))
    assert found is not None
    return found


# Bias and size ------------------------------------------------------------------------------------


def test_nearest_rounding_has_no_offset_and_no_noise_whatever_the_data() -> None:
    for x in (normal(5000), normal(5000).relu(), torch.arange(17.0).repeat(9) / 16):
        found = by(Rounding("nearest_even"), x)
        assert (found.offset, found.offset_error, found.noisy) == (0, 0, False)
    # uniform on a step: 1 / sqrt(12); 5 sigma of 5000 squares
    assert by(Rounding("nearest_even"), normal(5000)).spread == pytest.approx(12**-0.5, abs=0.006)


def test_a_stochastic_rounding_is_known_to_its_standard_error() -> None:
    """500 draws: |offset| / error is a standard normal's, the larger of two directions."""
    ratios = []
    for seed in range(500):
        found = by(stochastic(), normal(1000, seed=seed), seed)
        assert found.noisy
        ratios.append(abs(found.offset) / found.offset_error)
    assert max(ratios) < 5 and 0.7 < np.median(ratios) < 1.5
    assert found.spread == pytest.approx(6**-0.5, abs=0.03)  # E[f (1 - f)] = 1/6


def test_the_offset_of_biased_roundings_is_the_bias() -> None:
    position = torch.rand(40000, generator=torch.Generator().manual_seed(0)) * 200 - 100
    down = coded(position, position.floor())
    assert down.offset == pytest.approx(-0.5, abs=0.008)  # 5 sigma of 40000
    up = coded(position, (position + 0.5 + 0.01).floor())  # nearest, but for a hundredth
    assert up.offset == pytest.approx(0.01, abs=0.0025) and up.offset_error == 0
    shrunk = coded(position, position.trunc())
    assert shrunk.offset == pytest.approx(-0.5, abs=0.008)  # outward
    assert by(floor, normal(4000)).offset == pytest.approx(-0.5, abs=0.03)


def test_what_is_a_tie_in_fp32_may_go_either_way() -> None:
    x = torch.full((72,), 2.5 + 1e-7, dtype=torch.float64)
    for code in (2, 3):
        q = QTensor(torch.full((72,), code, dtype=torch.int8), torch.ones(1), None, int8, (72,))
        found = rounded(TensorPair(x, q))
        assert found is not None and (found.offset, found.noisy) == (0, False)


def test_what_is_clipped_has_no_part_in_the_rounding() -> None:
    position = torch.rand(8000, generator=torch.Generator().manual_seed(0)) * 1000 - 500
    found = coded(position, position.round().clamp(-127, 127))
    assert found.offset == 0 and found.spread < 0.3
    assert found.reach == pytest.approx(500 / 127, rel=0.001)


def test_codes_that_stand_for_other_values_are_off_by_more_than_rounding() -> None:
    position = torch.rand(4000) * 100
    assert coded(position, position.round() + 1).spread > 0.9


def test_reach_is_the_part_of_the_interval_that_is_taken() -> None:
    x = normal(4000)
    for fmt in (int8, e4m3, AFFINE):
        q = Quantizer(format=fmt, range=minmax)(x)
        found = rounded(TensorPair(x / 4, q._replace(elements=q.elements)))
        assert found is not None and found.reach == pytest.approx(0.25, rel=0.01)
    assert rounded(TensorPair(x, Quantizer(format=bf16, range=None)(x))).reach is None  # type: ignore[union-attr]
    dead = QTensor(torch.zeros(9, dtype=torch.int8), torch.zeros(1), None, int8, (9,))
    assert rounded(TensorPair(normal(9), dead)) == Rounded(0, 0, 0, math.inf, False)
    assert rounded(TensorPair(torch.zeros(9), dead)).reach is None  # type: ignore[union-attr]


@pytest.mark.parametrize("fmt", [e4m3, bf16], ids=str)
def test_a_float_formats_steps_grow_with_the_value(fmt: object) -> None:
    elements = torch.tensor([0.0, 1.0, 1.5, 2.0, -3.0, 100.0])
    elements = elements if fmt is e4m3 else elements * 2.0**-20
    assert fmt in (e4m3, bf16)
    q = QTensor(elements, torch.tensor([0.5]), None, fmt, (6,))  # type: ignore[arg-type]
    step = TensorPair(elements * 0.5, q).step
    for value, found in zip(elements.tolist(), step.tolist(), strict=True):
        exponent = math.frexp(value)[1] - 1 if value else fmt.min_exponent  # type: ignore[attr-defined]
        exponent = max(exponent, fmt.min_exponent)  # type: ignore[attr-defined]
        assert found == 0.5 * 2.0 ** (exponent - fmt.mantissa)  # type: ignore[attr-defined]


# Noise that is shared -----------------------------------------------------------------------------


def noisy(x: Tensor, draw: Tensor) -> QTensor:
    codes = (x + draw).floor().clamp(-127, 127).to(torch.int8)
    return QTensor(codes, torch.ones(1), None, int8, tuple(x.shape))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_noise_of_one_axis_is_found_on_that_axis(axis: int) -> None:
    """Fractions that are uniform, a common draw u: E[e e'] / E[e^2] = (1/12) / (1/6) = 1/2."""
    x = normal(32, 12, 20, seed=3) * 20
    shape = [1 if i == axis else size for i, size in enumerate(x.shape)]
    found = shared_noise(x, noisy(x, torch.rand(shape, generator=torch.Generator().manual_seed(1))))
    for other, (correlation, error) in enumerate(found):
        expected = 0.5 if other == axis else 0.0
        assert correlation == pytest.approx(expected, abs=0.1 if other == axis else 6 * error)


def test_noise_that_is_shared_but_for_the_sign_is_found_outward() -> None:
    x = normal(64, 40) * 20
    draw = torch.rand((1, 40), generator=torch.Generator().manual_seed(1))
    codes = torch.copysign((x.abs() + draw).floor(), x).clamp(-127, 127).to(torch.int8)
    found = shared_noise(x, QTensor(codes, torch.ones(1), None, int8, tuple(x.shape)))
    assert found[0].correlation > 0.4 and found[1].correlation < 5 * found[1].error


def test_independent_noise_is_within_its_standard_error() -> None:
    """100 draws on three axes; the largest rows decide, some 18 means: a chi-square's tail."""
    ratios = []
    for seed in range(100):
        x = normal(16, 10, 9, seed=seed) * torch.logspace(-2, 1.5, 10).reshape(1, 10, 1)
        draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        ratios += [c / e for c, e in shared_noise(x, noisy(x, draw))]
    assert max(ratios) < 7 and np.median(ratios) < 1.5


def test_a_block_thins_out_the_longest_axes_and_keeps_its_scales() -> None:
    assert cropped((4, 3), 100) == (slice(None, None, 1),) * 2
    sizes = [len(range(100)[s]) for s in cropped((100, 100), 100)]
    assert math.prod(sizes) <= 100 and max(sizes) <= 2 * min(sizes)
    whole = cropped((8, 64, 8), 64, keep=1)
    assert whole[1] == slice(None, None, 1) and len(range(8)[whole[0]]) == 1
    x = normal(6, 10, 7)
    q = Quantizer(format=AFFINE, range=minmax, granularity=per_axis(1))(x)
    at = cropped(x.shape, 50)
    some, part = block(x, q, at)
    assert torch.equal(some, x[at]) and torch.equal(part.dequantize(), q.dequantize()[at])


# Channels -----------------------------------------------------------------------------------------


def crowd(axis: int, *sizes: float) -> Tensor:
    """Noise of 32 channels, the first ones of other sizes than 1."""
    x = normal(60, 32, 32).clamp(-2, 2)
    for channel, size in enumerate(sizes):
        x.select(axis, channel).mul_(size)
    return x


def found_in(x: Tensor, axis: int, **settings: Any) -> Channels:
    found = channels(x, Quantizer(**{"format": int8, **settings})(x), axis)
    assert found is not None
    return found


@pytest.mark.parametrize("axis", [1, -1])
def test_an_outlier_channel_is_measured_by_what_its_scale_takes_of_the_others(axis: int) -> None:
    x = crowd(axis, 80, 0)  # a dead one does not count
    q = Quantizer(format=int8)(x)
    found = found_in(x, axis)
    assert found.outlier == pytest.approx(80, rel=0.02)
    others = x.narrow(axis, 1, 31).double()
    error = q.dequantize().narrow(axis, 1, 31) - others
    fine = Quantizer(format=int8)(others).dequantize() - others
    taken = (error.square().sum() - fine.square().sum()) / others.square().sum()
    assert found.crowded == pytest.approx(taken.item(), rel=0.1) and found.crowded > 0.1
    own = found_in(x, axis, granularity=per_axis(axis))  # one scale a channel
    assert own.outlier == pytest.approx(1, rel=0.02) and own.crowded == pytest.approx(0, abs=1e-9)
    assert abs(found_in(x, axis, format=e4m3).crowded or 0) < 1e-4  # no step that all share
    few = x.narrow(axis, 0, 3)
    assert channels(few, Quantizer(format=int8)(few), axis) is None


def test_small_channels_make_no_outlier_of_the_others() -> None:
    """q and k of a joined projection, rare classes: the median is small, no channel is large."""
    x = crowd(-1, *[1e-3] * 22)
    found = found_in(x, -1)
    assert found.outlier > 900 and abs(found.crowded or 0) < 1e-3
    two = found_in(crowd(-1, 80, 80), -1).crowded  # one in sixteen is few
    three = found_in(crowd(-1, 80, 80, 80), -1).crowded
    assert two is not None and two > 0.1 and three is not None and three < 1e-3


# Weights ------------------------------------------------------------------------------------------


def test_an_update_is_counted_in_steps_of_the_weight() -> None:
    weight = nn.Parameter(normal(6, 50))
    q = Quantizer(format=int8, granularity=per_axis(0))(weight)
    before = weight.detach().clone()
    watch = WeightWatch(weight, q, limit=1000)
    assert watch.update() is None
    with torch.no_grad():
        weight.add_(normal(6, 50, seed=1), alpha=0.01)
    assert q.scale is not None
    moved = ((weight.detach() - before).abs() / q.scale).double().mean().item()
    assert watch.update() == pytest.approx(moved, rel=1e-4)
    assert parameter(weight) and parameter(weight.view(1, 6, 50)) and not parameter(weight * 1)


def test_a_weight_oscillates_that_has_two_neighbouring_codes_and_changes_twice() -> None:
    history = [
        [0, 5, 5, 7, 1, 0],
        [1, 5, 6, 9, 2, 1],
        [0, 5, 6, 7, 1, 2],
        [1, 5, 6, 9, 2, 3],
    ]  # to and fro, still, one change, not neighbours, to and fro, on its way
    assert oscillation(history) == pytest.approx(2 / 6)
    assert oscillation(history[:3]) is None and oscillation([[]] * 5) is None


def test_neighbours_on_a_formats_grid_have_numbers_that_differ_by_one() -> None:
    for fmt in (e4m3, IntFormat(4), AFFINE):
        values = [v for v in fmt.codes().tolist()] if isinstance(fmt, IntFormat) else []
        grid = torch.tensor(values) if values else fmt.decode(fmt.codes())  # type: ignore[union-attr]
        grid = torch.unique(grid[torch.isfinite(grid.double())] + 0)  # sorted; +0 and -0 are one
        numbers = numbered(QTensor(grid, None, None, fmt, (len(grid),)))
        assert numbers.diff().unique().tolist() == [1]
    q = Quantizer(format=AFFINE, range=minmax)(normal(100))
    assert q.zero_point is not None
    assert torch.equal(numbered(q), q.elements.long() - q.zero_point)
