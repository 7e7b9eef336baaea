"""A quantizer's own error: healthy rounding never leaves its band, clips and biases do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qtrain.own_error import own_error
from qtrain.unbiased import Unbiased, neighbours, whole_range
from quantizers import (
    FloatFormat,
    IntFormat,
    QTensor,
    Quantizer,
    absmax,
    bf16,
    ceil,
    e4m3,
    e8m0,
    floor,
    minmax,
    per_axis,
    per_block,
    percentile,
    stochastic,
    toward_zero,
)
from quantizers.noise import root_key

INT8 = Quantizer(format=IntFormat(8))
QUANTIZERS = {
    "int8": INT8,
    "affine": Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax),
    "int3-per-row": Quantizer(format=IntFormat(3), granularity=per_axis(0)),
    "bf16": Quantizer(format=bf16, range=None),
    "e4m3": Quantizer(format=e4m3),
    "mx": Quantizer(
        format=e4m3, granularity=per_block({-1: 32}), scale_format=e8m0, scale_rounding=ceil
    ),
}
TENSORS = ("normal", "relu", "sparse", "few", "levels", "tiny")


def tensor(kind: str, seed: int) -> Tensor:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    if kind == "relu":
        return x.relu()
    if kind == "sparse":  # as gradients late in a training: few samples have all of it
        return x * torch.logspace(0, -9, 64)[:, None]
    if kind == "few":
        return x[:2, :3]
    if kind == "levels":
        return (x * 4).round() / 16
    return x * 1e-30 if kind == "tiny" else x


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", TENSORS)
def test_rounding_to_the_nearest_or_without_bias_never_leaves(name: str, kind: str) -> None:
    """20 draws of each: by the bound, once in some 10^6."""
    quantizer = QUANTIZERS[name]
    for seed in range(20):
        x = tensor(kind, seed)
        unbiased = replace(quantizer, rounding=stochastic())
        for q in (quantizer(x), unbiased(x, key=root_key(seed))):
            found = own_error(quantizer, x, q, 2**12)
            assert found is not None and found.leaves == "", (seed, found)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_units_are_unbiased_roundings_expected_error(name: str) -> None:
    """An average over 200 draws of size^2 is 1: its deviation is below 1 / sqrt(200 * 4)."""
    quantizer, x = QUANTIZERS[name], tensor("normal", 0)
    unbiased = replace(quantizer, rounding=stochastic())
    sizes = []
    for seed in range(200):
        found = own_error(quantizer, x, unbiased(x, key=root_key(seed)), 2**12)
        assert found is not None
        sizes.append(found.size**2)
    assert sum(sizes) / len(sizes) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["int8", "affine", "e4m3", "mx"])
def test_a_clip_leaves_as_an_error(name: str) -> None:
    quantizer, x = QUANTIZERS[name], tensor("normal", 1)
    found = own_error(quantizer, x, quantizer(x.clamp(-1.2, 1.2)), 2**12)
    assert found is not None and found.leaves == "error" and found.size > 3


@pytest.mark.parametrize("name", ["int8", "affine", "int3-per-row"])
@pytest.mark.parametrize("rounding", [floor, ceil, toward_zero], ids=str)
def test_rounding_to_one_side_leaves_as_a_bias(name: str, rounding: object) -> None:
    quantizer, x = QUANTIZERS[name], tensor("normal", 2)
    q = replace(quantizer, rounding=rounding)(x)  # type: ignore[arg-type]
    found = own_error(quantizer, x, q, 2**12)
    assert found is not None and found.leaves == "bias"
    # half a step, against sqrt(1 / 6) of one: 1.22; at 3 bits nearest rounding's zeros hide some
    assert found.bias == pytest.approx(math.sqrt(6) / 2, abs=0.25)


def test_a_scale_ten_times_too_large_leaves() -> None:
    x = tensor("normal", 3)
    wide = Quantizer(format=IntFormat(8))(torch.cat([x, x.new_full((1, 64), 10 * x.abs().max())]))
    q = wide._replace(elements=wide.elements[:-1], block=tuple(x.shape))
    found = own_error(INT8, x, q, 2**12)
    assert found is not None and found.leaves == "error" and found.size == pytest.approx(7, abs=1)


def test_a_healthy_scale_may_be_twice_the_tensors_range() -> None:
    x = tensor("normal", 4)
    for quantizer in (
        Quantizer(format=IntFormat(7)),
        Quantizer(format=IntFormat(8), range=percentile(1.0)),
    ):
        found = own_error(INT8, x, quantizer(x), 2**12)
        assert found is not None and found.leaves == ""


def test_zeros_have_no_error_and_a_tensor_that_is_not_finite_is_not_judged() -> None:
    quantizer = INT8
    zeros = torch.zeros(8, 8)
    assert own_error(quantizer, zeros, quantizer(zeros), 64) == (0, 0, "")
    wrong = quantizer(zeros)._replace(
        elements=torch.ones(8, 8, dtype=torch.int8), scale=torch.ones(1, 1)
    )
    found = own_error(quantizer, zeros, wrong, 64)
    assert found is not None and found.leaves == "error"
    for bad in (torch.nan, torch.inf):
        x = torch.tensor([[1.0, bad]])
        assert own_error(quantizer, x, quantizer(x), 64) is None
    assert own_error(quantizer, zeros[:0], quantizer(zeros[:0]), 64) is None


class Own:
    """Somebody's int8, a scale for each row."""

    def __call__(self, x: Tensor, **_: object) -> QTensor:
        scale = x.abs().amax(1, keepdim=True) / 127
        return QTensor((x / scale).round().to(torch.int8), scale, None, IntFormat(8), (1, 64))


def test_quantizers_of_ones_own_are_judged_by_what_they_return() -> None:
    x = tensor("normal", 5) * torch.logspace(0, -4, 64)[:, None]
    q = Own()(x)
    whole = whole_range(Own(), q)
    assert (whole.format, whole.granularity, whole.range) == (
        IntFormat(8),
        per_block({0: 1}, rest="whole"),
        absmax,
    )
    low, high = (t.dequantize() for t in neighbours(Own(), x, q))
    assert bool((low <= x).all()) and bool((x <= high).all())
    found = own_error(Own(), x, q, 2**12)
    assert found is not None and found.leaves == "" and found.size < 1
    shifted = own_error(Own(), x, q._replace(elements=q.elements.clamp(-50, 50)), 2**12)
    assert shifted is not None and shifted.leaves == "error"


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_healthy_twin_is_unbiased_and_keeps_its_thresholds(name: str) -> None:
    """The mean of 400 draws lies within 5 sigma of x, sigma = step / 2 / sqrt(400) at most."""
    quantizer, x = QUANTIZERS[name], tensor("normal", 6)
    low, high = (t.dequantize().double() for t in neighbours(quantizer, x, quantizer(x)))
    mean = torch.zeros_like(low)
    for seed in range(400):
        twin = Unbiased(quantizer, root_key(seed))
        q = twin(x)
        assert torch.equal(q.dequantize(), twin(x, key=root_key(seed + 9)).dequantize())
        mean += q.dequantize().double() / 400
    inside = (mean - x).abs() <= 5 * (high - low) / 2 / 20 + 1e-6 * x.abs()
    slack = 1e-6 * x.abs()
    clipped = (x < low - slack) | (x > high + slack)  # extremes, where a zero point was rounded
    assert bool((inside | clipped).all()) and int(clipped.sum()) <= 2


def test_a_twin_rounds_anew_where_its_quantizer_does() -> None:
    quantizer, x = replace(INT8, rounding=stochastic()), tensor("normal", 7)
    twin = Unbiased(quantizer, root_key(0))
    a, b = (twin(x, key=root_key(seed)).elements for seed in (1, 2))
    assert not torch.equal(a, b)
    assert torch.equal(a, quantizer(x, key=root_key(1)).elements)
    assert twin.format == IntFormat(8) and Unbiased(Own(), root_key(0)).format is None
    assert isinstance(Unbiased(QUANTIZERS["bf16"], root_key(0)).format, FloatFormat)
