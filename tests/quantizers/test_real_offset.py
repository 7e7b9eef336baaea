"""RealOffset, held to its definition in numpy float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantizers import (
    IntFormat,
    Quantizer,
    RealOffset,
    Scale,
    absmax,
    blocks,
    chunked_minmax,
    e8m0,
    ema,
    floor,
    fp32,
    minmax,
    per_axis,
    per_channel,
    root_key,
    stochastic,
)


def affine(bits: int = 8, **more: Any) -> Quantizer:
    settings = {"range": minmax, **more}
    return Quantizer(format=IntFormat(bits, signed=False, symmetric=False), **settings)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Any, low: Any, high: Any, bits: int) -> Any:
    """numpy float64; np.rint rounds to nearest even."""
    most = 2**bits - 1
    step = (high - low) / most
    with np.errstate(invalid="ignore", divide="ignore"):
        levels = np.where(step == 0, 0.0, np.rint((x - low) / step))
    return (low + step * np.clip(levels, 0, most)).astype(np.float32)


DATA = {
    "gaussian": normal(6, 4, 5),
    "one sign": normal(6, 4, 5).abs() + 3,
    "negative": -normal(6, 4, 5).abs() - 0.5,
    "tiny": normal(6, 4, 5) * 1e-38,
    "huge": (normal(6, 4, 5) * 3e38).clamp(-3.4e38, 3.4e38),
    "bf16": normal(6, 4, 5).bfloat16(),
    "fp64": normal(6, 4, 5).double() / 3,
    "one number": torch.full((6, 4, 5), 0.7),
}


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("name", DATA)
def test_values_are_those_of_the_definition(name: str, bits: int) -> None:
    x = DATA[name]
    own = x.double().numpy()
    whole = RealOffset(affine(bits))(x)
    low, high = (np.float64(np.float32(end)) for end in (own.min(), own.max()))
    assert np.array_equal(whole.dequantize().numpy(), by_hand(own, low, high, bits))
    assert whole.format == fp32 and whole.scale is None
    axis = RealOffset(affine(bits, granularity=per_axis(1)))(x)
    low = own.min((0, 2), keepdims=True).astype(np.float32).astype(np.float64)
    high = own.max((0, 2), keepdims=True).astype(np.float32).astype(np.float64)
    assert np.array_equal(axis.dequantize().numpy(), by_hand(own, low, high, bits))
    clipped = RealOffset(affine(bits, range=chunked_minmax()))(x)
    low, high = (
        np.float64(np.float32(getattr(own.astype(np.float32), end)((1, 2)).astype(float).mean()))
        for end in ("min", "max")
    )
    assert np.array_equal(clipped.dequantize().numpy(), by_hand(own, low, high, bits))


def test_both_ends_are_levels_and_zero_is_none() -> None:
    x = torch.tensor([-0.3, 0.0, 1.0])
    real, exact = RealOffset(affine(2))(x).dequantize(), affine(2)(x).dequantize()
    assert real[0] == x[0] and real[2] == 1 and real[1] != 0
    assert exact[1] == 0 and exact[0] != x[0]
    far = torch.tensor([5.0, 5.25, 6.0])  # a range that does not reach 0 is not widened
    assert torch.equal(RealOffset(affine(3))(far).dequantize(), (far - 5).mul(7).round() / 7 + 5)


def test_stochastic_rounding_takes_the_neighbours_and_is_unbiased() -> None:
    x = torch.cat([torch.tensor([-1.0, 2.0]), torch.full((40_000,), 0.3)])
    found = RealOffset(affine(4, rounding=stochastic()))(x, key=root_key(1)).dequantize()
    assert torch.equal(found[:2], x[:2])
    step, level = 3 / 15, (0.3 + 1) / (3 / 15)
    near = torch.tensor([math.floor(level), math.ceil(level)]).double() * step - 1
    assert {*found[2:].tolist()} == {*near.float().tolist()}
    p = level - math.floor(level)  # 5 sigma of a mean of 40,000 draws
    assert abs(found[2:].double().mean() - 0.3) < 5 * step * math.sqrt(p * (1 - p) / 40_000)
    with pytest.raises(ValueError, match="needs a key"):
        RealOffset(affine(4, rounding=stochastic()))(x)
    assert torch.equal(
        RealOffset(affine(4, rounding=floor))(x)[0][2:], near[:1].float().expand(40_000)
    )


def test_a_range_with_memory_serves_evaluation() -> None:
    quantizer = RealOffset(affine(8, range=ema(minmax, momentum=0.5, train_on="batch")))
    state = quantizer.init_state((None, 3))
    a, b = normal(5, 3), normal(5, 3, seed=1)
    for x in (a, b):
        found = quantizer(x, state=state).dequantize()
        own = x.double().numpy()
        assert np.array_equal(found.numpy(), by_hand(own, own.min(), own.max(), 8))
    found = quantizer(a, state=state, training=False).dequantize().numpy()
    low, high = (float(state[end]) for end in ("low", "high"))
    assert low == pytest.approx((a.min() + b.min()).item() / 2, rel=1e-6)
    assert np.array_equal(found, by_hand(a.double().numpy(), low, high, 8))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_element_makes_its_granule_nan(bad: float) -> None:
    x = normal(3, 4)
    x[1, 2] = bad
    found = RealOffset(affine(8, granularity=per_axis(0)))(x).dequantize()
    assert found.isnan().all(1).tolist() == [False, True, False]
    assert found[[0, 2]].isfinite().all()


def test_empty_tensors_and_no_graph() -> None:
    assert RealOffset(affine())(torch.empty(0, 3)).dequantize().shape == (0, 3)
    x = normal(4).requires_grad_()
    assert not RealOffset(affine())(x).elements.requires_grad


@pytest.mark.parametrize(
    ("of", "error", "message"),
    [
        (8, TypeError, "of: got 8, need an affine Quantizer"),
        (Quantizer(format=IntFormat(8)), ValueError, "of: got int8.* need an affine Quantizer"),
        (Quantizer(format="e4m3", range=absmax), ValueError, "need an affine Quantizer"),
        (affine(granularity=blocks(32)), ValueError, r"a granularity by axes, such as per_channel"),
        (affine(straight_through="strict"), ValueError, "straight_through 'strict', need 'ident"),
        (affine(scale=Scale(e8m0)), ValueError, "leave scale out"),
    ],
    ids=["a number", "symmetric", "a float", "blocks", "a gradient", "e8m0"],
)  # fmt: skip
def test_what_it_cannot_be_of(of: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        RealOffset(of)


def test_it_prints_compares_and_hashes() -> None:
    one = RealOffset(affine(8, granularity=per_channel()))
    assert str(one) == "uint8 affine, per axis 0,1, real offset"
    assert one == RealOffset(affine(8, granularity=per_channel())) != RealOffset(affine())
    assert hash(one) == hash(RealOffset(affine(8, granularity=per_channel())))
