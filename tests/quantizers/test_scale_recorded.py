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
    blocks,
    e2m1,
    e4m3,
    e8m0,
    floor,
    formats,
    fp32,
    per_tensor,
    rms,
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
        granularity=blocks(32),
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
        over = Scale(fp32, top=448, granularity=blocks(None))
    scale = Scale(e4m3, over=over, reciprocal=True)
    if case.settings.get("nvfp4_use_4over6"):
        by = case.settings["nvfp4_4over6_err_mode"].lower()
        over = Scale(fp32, top=case.settings["nvfp4_e4m3_max"])
        scale = Scale(e4m3, over=over, reciprocal=True, candidates=(6, 4), by=by)
    return Quantizer(format=e2m1, granularity=blocks(columns, rows), scale=scale)


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


FP8 = [
    *recorded("transformer_engine", "CurrentScaling", pow_2_scales=False),
    *recorded("transformer_engine", "Blockwise", pow_2_scales=False),
]


@pytest.mark.parametrize("case", FP8, ids=str)
def test_fp32_scales_by_reciprocals_are_transformer_engines(case: Recorded) -> None:
    grain = per_tensor
    if case.settings["block"] is not None:
        rows, columns = case.settings["block"]
        grain = blocks(columns, rows)
    fmt = formats.get(case.settings["format"])
    quantizer = Quantizer(format=fmt, granularity=grain, scale=Scale(reciprocal=True))
    equal(case, quantizer, case.largest() > 0)  # a block of zeros has scale 1 there


BEST = {"mse": "mse", "mae": "mae", "abs_max": "absmax"}


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in recorded("fouroversix", format="nvfp4", round_style="nearest")
        if c.data not in DECIDED_BY_FP32
        and (c.settings["scale_rule"], c.data) != ("static_6", "edges")
    ],
    ids=str,
)
def test_candidates_are_those_of_four_over_six(case: Recorded) -> None:
    """(Its static scales multiply in another order: one block of `edges`.)"""
    rows, columns = case.settings["block"]
    scale = NVFP4
    if case.settings["scale_rule"] in BEST:
        by, over = BEST[case.settings["scale_rule"]], Scale(fp32, top=256)
        scale = Scale(e4m3, over=over, reciprocal=True, candidates=(6, 4), by=by)  # type: ignore[arg-type]
    grain = blocks(columns, rows)
    equal(case, Quantizer(format=e2m1, granularity=grain, scale=scale), case.spread() > 0)


@pytest.mark.parametrize(
    "case", recorded("quartet", "mxfp4_forward_kernel", what="Tseng, nearest"), ids=str
)
def test_three_quarters_before_and_four_thirds_after_are_quartets(case: Recorded) -> None:
    scale = Scale(e8m0, rule="ocp_floor", prescale=3 / 4)
    made = Quantizer(format=e2m1, granularity=blocks(32), scale=scale)(case.operand.view(-1, 32))
    assert torch.equal(made.dequantize(), case["values"].view(-1, 32))


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in recorded("quartet", "mxfp4_forward_kernel", what="QuEST")
        if c.data in ("heavy_tailed", "halves", "edges", "zeros")  # no ties, which it cuts
    ],
    ids=str,
)
def test_a_multiple_of_the_root_mean_square_is_quests(case: Recorded) -> None:
    quantizer = Quantizer(
        format=e2m1, granularity=blocks(32), range=rms(2.92247856),
        scale=Scale(e8m0, rounding=floor),
    )  # fmt: skip
    made = quantizer(case.operand.view(-1, 32))
    assert torch.equal(made.dequantize(), case["values"].view(-1, 32))


@pytest.mark.parametrize("case", recorded("tetrajet", "DoubleScale_fake_quantize_fused"), ids=str)
def test_blocks_of_16_in_blocks_of_128_are_tetrajets(case: Recorded) -> None:
    """It multiplies the two scales before the element: a rounding or two apart."""
    over = Scale(fp32, top=448, granularity=blocks(128))
    made = Quantizer(
        format=e2m1, granularity=blocks(16), scale=Scale(e4m3, over=over)
    )(case.x)  # fmt: skip
    assert made.outer is not None and made.outer.shape == (len(case.x), 1)
    torch.testing.assert_close(made.dequantize(), case["values"], rtol=2.0**-22, atol=1e-44)


@pytest.mark.parametrize("case", recorded("microxcaling", rule="floor", round="even"), ids=str)
def test_the_rule_of_ocp_is_microxcalings(case: Recorded) -> None:
    if case.data == "tiny" and case.settings["format"].startswith("int"):
        pytest.skip("its scale of integers, times their largest power of two, ends at 2^-127 too")
    if case.data == "huge" and case.settings["format"] == "int4":
        pytest.skip("it adds 1/2 to the number below 1/2 in fp32, which makes 1")
    fmt = formats.get(case.settings["format"])
    scale = Scale(e8m0, rule="ocp_floor")
    made = Quantizer(format=fmt, granularity=blocks(32), scale=scale)(case.x)
    same = made.dequantize() == case["values"]
    assert bool((same | case.spread("off_the_rule")).all())
