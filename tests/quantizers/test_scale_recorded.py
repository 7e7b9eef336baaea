"""Scales against what the packages that publish their rules gave, bit for bit."""

from __future__ import annotations

import pytest
import torch
from quantizer_checks import same_bits
from recorded_results import Recorded, recorded
from torch import Tensor

from quantizers import (
    Quantizer,
    Scale,
    e2m1,
    e4m3,
    e8m0,
    formats,
    fp32,
    per_block,
    per_token,
)

#: torchao's names of them
RULES = {"floor": "ocp_floor", "ceil": "ocp_ceil", "even": "even", "rceil": "rceil"}
NVFP4 = Scale(e4m3, over=Scale(fp32, top=448), reciprocal=True)


def equal(case: Recorded, quantizer: Quantizer, where: Tensor) -> None:
    """Scales and elements are the recorded ones `where`; TransformerEngine's -0 becomes 0."""
    made, scale = quantizer(case.operand), case.spread()
    assert made.scale is not None and where.any()
    ours = made.spread(made.scale).expand(scale.shape)
    assert same_bits(ours[where], scale[where])
    found, wanted = made.elements[where], case["elements"][where]
    assert torch.equal(found, wanted)
    if case.source == "torchao":
        assert same_bits(found, wanted)


@pytest.mark.parametrize("case", recorded("torchao", "to_mx"), ids=str)
def test_rules_of_powers_of_two_are_torchaos(case: Recorded) -> None:
    """Where amax is 0 its scale is 2^-127, and ours 0; "even" makes NaN of what goes to 2^128."""
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        granularity=per_block({-1: 32}),
        scale=Scale(e8m0, rule=RULES[case.settings["rule"]]),  # type: ignore[arg-type]
    )
    recorded_scale = case.spread()
    assert bool(recorded_scale.isnan().any()) == (
        case.settings["rule"] == "even" and case.data == "huge"
    )
    equal(case, quantizer, (case.largest() > 0) & ~recorded_scale.isnan())


def nvfp4(case: Recorded) -> Quantizer:
    """As TransformerEngine's settings say."""
    rows, columns = case.settings["block"]
    over = Scale(fp32, top=448)
    if case.settings.get("row_scaled_nvfp4"):
        over = Scale(fp32, top=448, granularity=per_token)
    scale = Scale(e4m3, over=over, reciprocal=True)
    if case.settings.get("nvfp4_use_4over6"):
        by = case.settings["nvfp4_4over6_err_mode"].lower()
        over = Scale(fp32, top=case.settings["nvfp4_e4m3_max"])
        scale = Scale(e4m3, over=over, reciprocal=True, candidates=(6, 4), by=by)
    return Quantizer(format=e2m1, granularity=per_block({-2: rows, -1: columns}), scale=scale)


OURS = recorded("transformer_engine", "NVFP4QuantizerRef.quantize", levels=2)


@pytest.mark.parametrize(
    "case", [c for c in OURS if not c.settings.get("nvfp4_use_4over6")], ids=str
)
def test_two_levels_are_transformer_engines(case: Recorded) -> None:
    """Elements but where its scale is 0, and they are +-6."""
    quantizer = nvfp4(case)
    made, scale = quantizer(case.operand), case.spread()
    assert made.scale is not None
    assert same_bits(made.spread(made.scale).expand(scale.shape), scale)
    equal(case, quantizer, scale > 0) if (scale > 0).any() else None
    assert bool((made.elements[scale == 0] == 0).all())
    assert bool(torch.isfinite(made.dequantize()).all())


#: errors that fp32 rounds, squares to infinity or to 0 there, and fp64 does not: README.md
DECIDED_BY_FP32 = {"tiny", "huge", "halves", "midpoints"}


@pytest.mark.parametrize(
    "case",
    [c for c in OURS if c.settings.get("nvfp4_use_4over6") and c.data not in DECIDED_BY_FP32],
    ids=str,
)
def test_four_over_six_is_transformer_engines(case: Recorded) -> None:
    quantizer = nvfp4(case)
    made, scale = quantizer(case.operand), case.spread()
    assert made.scale is not None
    assert same_bits(made.spread(made.scale).expand(scale.shape), scale)
    equal(case, quantizer, scale > 0)


@pytest.mark.parametrize(
    "case",
    [c for c in OURS if c.settings.get("nvfp4_use_4over6") and c.data in DECIDED_BY_FP32],
    ids=str,
)
def test_where_fp32_decides_four_over_six_elements_are_those_of_equal_scales(
    case: Recorded,
) -> None:
    """TransformerEngine then keeps 6, whose scale is at most the one of 4."""
    quantizer = nvfp4(case)
    made, scale = quantizer(case.x), case.spread()
    assert made.scale is not None
    ours = made.spread(made.scale).expand(scale.shape)
    same = ours == scale
    assert same.float().mean() > (0.95 if case.data in ("halves", "midpoints") else 0.2)
    if case.data in ("tiny", "huge"):
        assert bool((ours >= scale).all())
    equal(case, quantizer, same & (scale > 0))
