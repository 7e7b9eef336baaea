"""Quantizers against what other people's code gave: bit for bit, on every recorded input."""

from dataclasses import replace

import pytest
import torch
from quantizer_checks import same_bits
from recorded_results import FOLDER, SOURCES, Recorded, given, recorded

from quantizers import (
    IntFormat,
    Quantizer,
    Scale,
    blocks,
    formats,
    fp32,
    round_to_float,
)
from quantizers.rounding import ceil

NVFP4 = Scale(formats.e4m3, over=Scale(fp32, top=448), reciprocal=True)


def test_every_source_says_what_made_it() -> None:
    for source in SOURCES:
        for case in recorded(source):
            assert set(case.made_by) == {"name", "version", "license", "torch"}
            assert case.keys and all(case[name].numel() for name in case.keys)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def check(
    case: Recorded, quantizer: Quantizer, where: torch.Tensor | None = None, *, zeros: bool = True
) -> None:
    """Scales and elements equal the recorded ones in the blocks `where`; zeros: and the signs of
    zeros do."""
    made, scale = quantizer(case.operand), case.spread()
    where = torch.ones_like(scale, dtype=torch.bool) if where is None else where
    assert where.any() and made.scale is not None
    ours = made.spread(made.scale).expand(scale.shape)
    assert same_bits(ours[where], scale[where])
    found, wanted = made.elements[where], case["elements"][where]
    assert same_bits(found, wanted) if zeros else torch.equal(found.float(), wanted.float())


@pytest.mark.parametrize("case", recorded("torchao", "to_mx", rule="rceil"), ids=str)
def test_power_of_two_scales_rounded_up_are_torchaos_rceil(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        granularity=blocks(32),
        scale=Scale(formats.e8m0, rounding=ceil),
    )
    check(case, quantizer, case.spread() > 2.0**-127)


@pytest.mark.parametrize("case", recorded("transformer_engine", "mxfp8_2d"), ids=str)
def test_square_blocks_are_transformer_engines_mxfp8(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.e4m3,
        granularity=blocks(32, 32),
        scale=Scale(formats.e8m0, rounding=ceil),
    )
    check(case, quantizer)


@pytest.mark.parametrize(
    "case", recorded("transformer_engine", "Blockwise", pow_2_scales=True), ids=str
)
def test_power_of_two_scales_of_blocks_are_transformer_engines(case: Recorded) -> None:
    rows, columns = case.settings["block"]
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        granularity=blocks(columns, rows),
        scale=Scale(formats.e8m0, rounding=ceil),
    )
    check(case, quantizer, case.largest() > 0)  # a block of zeros has scale 1 there


@pytest.mark.parametrize(
    "case", recorded("transformer_engine", "CurrentScaling", pow_2_scales=True), ids=str
)
def test_a_power_of_two_scale_of_a_tensor_is_transformer_engines(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        scale=Scale(formats.e8m0, rounding=ceil),
    )
    check(case, quantizer)


@pytest.mark.parametrize("case", recorded("torchao", "nvfp4", levels=1), ids=str)
def test_e4m3_scales_are_torchaos_nvfp4_of_one_level(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.e2m1,
        granularity=blocks(16),
        scale=Scale(formats.e4m3),
    )
    above = case.spread() > torch.finfo(torch.float8_e4m3fn).tiny  # torchao's smallest scale
    if case.data != "tiny":
        check(case, quantizer, above)
    else:  # every scale is that one, and every element 0
        assert not above.any()
        assert same_bits(quantizer(case.x).elements, case["elements"])


@pytest.mark.parametrize(
    "case",
    [c for c in recorded("torchao", "quantize_fp8") if c.data != "tiny"],  # below 1e-12
    ids=str,
)
def test_groups_of_256_are_torchaos_fp8_states(case: Recorded) -> None:
    made = Quantizer(format=formats.e4m3, granularity=blocks(256))(case.x.view(-1, 256))
    assert made.scale is not None and same_bits(made.scale.flatten(), case["scale"])
    assert same_bits(made.elements.view_as(case.x), case["elements"])


def but(cases: list[Recorded], *data: str) -> list[Recorded]:
    """Those of other inputs; recorded/README.md says what these do to the source."""
    return [case for case in cases if case.data not in data]


@pytest.mark.parametrize("case", recorded("torchao", "semantic_cases"), ids=str)
def test_torchaos_contract_of_mxfp8_is_met(case: Recorded) -> None:
    """Zeros, infinities, NaN and fp32's ends, each under its name."""
    rule = {"floor": "ocp_floor", "rceil": "rceil"}[case.settings["rule"]]
    scale = Scale(formats.e8m0, rule=rule)  # type: ignore[arg-type]
    made = Quantizer(format=formats.e4m3, granularity=blocks(32), scale=scale)(case.x)
    assert made.scale is not None
    for row, name in enumerate(case.settings["names"]):
        assert same_bits(made.elements[row], case["elements"][row]), name
        if name != "zero":  # its scale is e8m0's smallest there, and 0 here
            ours, theirs = made.scale[row], case["scale"][row]
            finite = torch.isfinite(theirs).all()
            assert same_bits(ours, theirs) if finite else not torch.isfinite(ours).any(), name


def test_rounding_up_to_powers_of_two_is_torchaos() -> None:
    """But for 0, which e8m0 does not have."""
    (case,) = recorded("torchao", "f32_to_e8m0_rceil")
    there = case.x != 0
    saturated = case["scale"].isnan() & torch.isfinite(case.x)  # NaN there
    made = round_to_float(case.x, formats.e8m0, ceil)
    assert same_bits(made[there & ~saturated], case["scale"][there & ~saturated])
    assert bool((made[saturated] == formats.e8m0.largest).all()) and saturated.sum() == 2


@pytest.mark.parametrize(
    "case", but(recorded("torchao", "nvfp4", levels=2), "halves", "midpoints", "edges"), ids=str
)
def test_two_levels_by_division_are_torchaos(case: Recorded) -> None:
    """It multiplies x by (1 / outer) / scale, which differs in ties and block maxima of these."""
    scale = Scale(formats.e4m3, over=Scale(fp32, top=448))
    quantizer = Quantizer(format=formats.e2m1, granularity=blocks(16), scale=scale)
    made = quantizer(case.x)
    assert made.outer is not None and same_bits(made.outer.flatten(), case["outer"].flatten())
    check(case, quantizer, case.spread() > torch.finfo(torch.float8_e4m3fn).tiny)


@pytest.mark.parametrize("case", recorded("jetfire", stochastic=False), ids=str)
def test_int8_tiles_of_32_are_jetfires(case: Recorded) -> None:
    check(
        case,
        Quantizer(format=IntFormat(8), granularity=blocks(32, 32)),
    )


@pytest.mark.parametrize(
    "case", but(recorded("tetrajet", "block_quant", stochastic=False), "huge", "edges"), ids=str
)
def test_e2m1_blocks_are_tetrajets(case: Recorded) -> None:
    scale = {
        0: Scale(),
        1: Scale(formats.e8m0, rule="rceil"),
        3: Scale(formats.e8m0, rule="ocp_floor"),
    }[case.settings["MXScale"]]
    quantizer = Quantizer(format=formats.e2m1, granularity=blocks(32), scale=scale)
    check(case, quantizer, case.largest() > 0, zeros=False)


@pytest.mark.parametrize(
    "case",
    but(recorded("nanogpt_mxfp4", stochastic=False), "tiny", "huge", "edges"),
    ids=str,
)
def test_e2m1_blocks_are_those_of_fp4_all_the_ways_author(case: Recorded) -> None:
    scale = Scale(formats.e8m0, rule="rceil")
    made = Quantizer(format=formats.e2m1, granularity=blocks(32), scale=scale)(case.x)
    assert torch.equal(made.dequantize(), case["values"])  # 0 for -0 there


@pytest.mark.parametrize("case", recorded("fouroversix", format="mxfp4"), ids=str)
def test_mxfp4_is_four_over_sixs(case: Recorded) -> None:
    """Its smallest scales, 2^-127 and 2^-126, are those of subnormal quotients, or of zero."""
    top = {"static_6": 6.0, "static_4": 4.0}[case.settings["scale_rule"]]
    scale = Scale(formats.e8m0, rule="rceil", top=top)
    quantizer = Quantizer(format=formats.e2m1, granularity=blocks(32), scale=scale)
    check(case, quantizer, case.spread() > 2.0**-126, zeros=False)


@pytest.mark.parametrize("case", but(recorded("fouroversix", format="nvint4"), "halves"), ids=str)
def test_int4_under_e4m3_scales_is_four_over_sixs(case: Recorded) -> None:
    """Where its scale is not 0; it divides before it multiplies: one scale of `halves` differs."""
    quantizer = Quantizer(format=IntFormat(4), granularity=blocks(16), scale=NVFP4)
    check(case, quantizer, case.spread() > 0, zeros=False)


def nvfp4(x: torch.Tensor, rows: int = 1, scale: Scale = NVFP4) -> torch.Tensor:
    """x quantized in tiles of rows x 16: fp64."""
    grain = blocks(16, rows)
    made = Quantizer(format=formats.e2m1, granularity=grain, scale=scale)(x)
    assert made.scale is not None and made.outer is not None
    return made.elements.double() * made.spread(made.scale) * made.spread(made.outer)


#: but where fp32 decides between equal errors
PRODUCTS = [
    case
    for case in recorded("transformer_engine", "qgemm")
    if (case.settings["case"], case.data) != ("4over6", "midpoints")
]


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_products_of_operands_are_transformer_engines(case: Recorded) -> None:
    """To the rounding of its fp32 sums; the weight gradient's operands are rotated first."""
    first, second, kind = case.x[:16], case.x[16:], case.settings["case"]
    if kind == "1x16 by 16x16":
        a, b = nvfp4(first), nvfp4(second, rows=16)
    elif kind == "4over6":
        best = replace(NVFP4, candidates=(6, 4), over=Scale(fp32, top=256))
        a, b = nvfp4(first, scale=best), nvfp4(second, scale=best)
    else:
        (signs,) = recorded("transformer_engine", "get_wgrad_sign_vector")
        turn = signs["matrix"] / 4
        assert torch.equal(turn[:, 0] * 4, signs["signs"])  # diag(signs) times Sylvester's / 4
        other = given("heavy_tailed" if case.data == "gaussian" else "gaussian")[:, :16]
        rotated = [
            (x.t().reshape(-1, 16) @ turn).view(x.shape[1], x.shape[0]) for x in (other, case.x)
        ]
        a, b = nvfp4(rotated[0]), nvfp4(rotated[1])
    bound = a.abs() @ b.abs().t()
    assert bool(((a @ b.t() - case["result"]).abs() <= 2e-7 * bound).all())
