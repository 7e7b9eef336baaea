"""Compiled sums are `quantizers.accumulate` whatever the shape: of tiles, of groups of rows, and of
blocks of terms, whose ends no chunk and no group of a unit minds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qtrain.products.accumulated.sums import _compiled
from quantizers import FloatFormat, accumulate, accumulators, e4m3, e5m2, fp16, root_key, stochastic

UNITS: dict[str, Any] = {
    "chunks": accumulators.sequential(fp16, chunk=48),
    "bits": accumulators.sequential(FloatFormat(6, 5), chunk=50, rounding=stochastic()),
    "products": accumulators.sequential(fp16, product=FloatFormat(5, 4), rounding=stochastic()),
    "lost parts": accumulators.sequential(FloatFormat(6, 5), compensated=True),
    "groups of 5": accumulators.aligned(terms=5, bits=20, kept=13),
    "promoted": accumulators.get("H100", "e4m3", promote=96),
    "saturated": accumulators.integer(9, overflow="saturate"),
}
#: rows, columns, terms: fewer rows than columns and the other way round
SHAPES = [(3, 70, 300), (70, 3, 300), (150, 66, 130), (67, 200, 129), (1, 1, 1), (130, 2, 257)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", UNITS)
def test_sums_of_any_shape(name: str, shape: tuple[int, int, int]) -> None:
    unit, (rows, columns, terms) = UNITS[name], shape
    seed = torch.Generator().manual_seed(sum(shape))
    whole = torch.randint(-3, 4, (3, max(rows, columns), terms), generator=seed).float()
    # many zeros, whose exponent is the smallest of their format
    reals = torch.randn(whole.shape, generator=seed) / 64 * whole.clamp(0, 1)
    narrow = [reals.to(dtype).float() for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)]
    one, other = (whole, whole) if name == "saturated" else narrow
    a, b = one[:2, :rows], other[2:, :columns]
    key = root_key(3) if unit.noisy else None
    before = torch.get_num_threads()
    torch.set_num_threads(3 if rows > 64 else 1)
    try:
        found = _compiled(a, b, unit, (e4m3, e5m2), key)
    finally:
        torch.set_num_threads(before)
    assert found is not None
    left, right = a.unsqueeze(-2), b.unsqueeze(-3)
    assert torch.equal(found, accumulate(left, right, unit, formats=(e4m3, e5m2), key=key))
