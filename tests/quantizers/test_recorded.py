"""Quantizers against what other people's code gave: bit for bit, on every recorded input."""

import pytest
import torch
from quantizer_checks import same_bits
from recorded_results import FOLDER, SOURCES, Recorded, recorded

from quantizers import Quantizer, Scale, formats, per_block
from quantizers.rounding import ceil


def test_every_source_says_what_made_it() -> None:
    for source in SOURCES:
        for case in recorded(source):
            assert set(case.made_by) == {"name", "version", "license", "torch"}
            assert case.keys and all(case[name].numel() for name in case.keys)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def check(case: Recorded, quantizer: Quantizer, where: torch.Tensor | None = None) -> None:
    """Scales and elements, the sign of zero too, equal the recorded ones in the blocks `where`."""
    made, scale = quantizer(case.operand), case.spread()
    where = torch.ones_like(scale, dtype=torch.bool) if where is None else where
    assert where.any() and made.scale is not None
    ours = made.spread(made.scale).expand(scale.shape)
    assert same_bits(ours[where], scale[where])
    assert same_bits(made.elements[where], case["elements"][where])


@pytest.mark.parametrize("case", recorded("torchao", "to_mx", rule="rceil"), ids=str)
def test_power_of_two_scales_rounded_up_are_torchaos_rceil(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        granularity=per_block({-1: 32}),
        scale=Scale(formats.e8m0, rounding=ceil),
    )
    check(case, quantizer, case.spread() > 2.0**-127)


@pytest.mark.parametrize("case", recorded("transformer_engine", "mxfp8_2d"), ids=str)
def test_square_blocks_are_transformer_engines_mxfp8(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.e4m3,
        granularity=per_block({-2: 32, -1: 32}),
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
        granularity=per_block({-2: rows, -1: columns}),
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
        format=formats.e2m1, granularity=per_block({-1: 16}), scale=Scale(formats.e4m3)
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
    made = Quantizer(format=formats.e4m3, granularity=per_block({-1: 256}))(case.x.view(-1, 256))
    assert made.scale is not None and same_bits(made.scale.flatten(), case["scale"])
    assert same_bits(made.elements.view_as(case.x), case["elements"])
