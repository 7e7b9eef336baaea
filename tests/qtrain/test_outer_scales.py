"""Scales of two levels in layers: figures see the product of both."""

from __future__ import annotations

import pytest
import torch

from qtrain.inspection.detail import Detail
from qtrain.inspection.distributions import channels
from qtrain.inspection.pair import TensorPair
from qtrain.inspection.sampling import block, sampled
from quantizers import (
    Quantizer,
    Scale,
    blocks,
    e2m1,
    e4m3,
    e8m0,
    random_bits,
    root_key,
)

TWO = Quantizer(
    format=e2m1,
    granularity=blocks(16),
    scale=Scale(e4m3, over=Scale(top=448)),
)
BEFORE = Quantizer(format=e2m1, scale=Scale(e8m0, rule="ocp_floor", prescale=0.75))
X = random_bits(root_key(1), (24, 48)).float() / 2**29


@pytest.mark.parametrize("quantizer", [TWO, BEFORE], ids=["two levels", "a constant"])
def test_samples_and_figures_see_both_levels(quantizer: Quantizer) -> None:
    q = quantizer(X)
    assert q.outer is not None and q.scale is not None
    whole = (q.spread(q.scale) * q.spread(q.outer)).expand(X.shape)
    pair = TensorPair(X, q)
    wanted = q.spread(q.scale).double() * q.outer.double()
    assert torch.equal(pair.scale.expand(X.shape), wanted.expand(X.shape))
    assert torch.equal(pair.outside, X.abs().double() > 6 * wanted * (1 + 2.0**-20))
    assert bool((pair.error.abs() <= pair.step).all())
    some, part = block(X, q, (slice(None, None, 2), slice(None, None, 3)))
    assert torch.equal(part.dequantize(), q.dequantize()[::2, ::3])
    assert torch.equal(some, X[::2, ::3])
    few = sampled(q, 100)
    assert torch.equal(few.dequantize(), sampled(q.dequantize(), 100))
    found = channels(X, q, 1)
    base = (X.abs() / whole).amax(0)
    assert found is not None
    assert found.outlier == pytest.approx((base.max() / base.median()).item())
    detail = Detail()
    detail.add(pair, quantized=True)
    detail.add_whole(X, q, 1)
    low, _, high = detail.scale or (0, 0, 0)
    compact = q.scale * q.outer
    assert (low, high) == (compact.min().item(), compact.max().item())
