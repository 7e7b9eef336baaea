"""Quantizers against what other people's code gave: bit for bit, on every recorded input."""

import pytest
import torch
from quantizer_checks import same_bits
from recorded_results import FOLDER, SOURCES, Recorded, recorded

from quantizers import Quantizer, formats, per_block
from quantizers.rounding import ceil


def test_every_source_says_what_made_it() -> None:
    for source in SOURCES:
        for case in recorded(source):
            assert set(case.made_by) == {"name", "version", "license", "torch"}
            assert case.keys and all(case[name].numel() for name in case.keys)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def check(case: Recorded, quantizer: Quantizer, where: torch.Tensor | None = None) -> None:
    """Scales and elements, the sign of zero too, equal the recorded ones in the blocks `where`."""
    rows, columns = case.settings["block"]
    made = quantizer(case.x)
    where = (case.spread() == case.spread()) if where is None else where
    assert where.any()
    zero = torch.zeros(())
    expected = torch.where(where, case["elements"], zero)
    assert same_bits(torch.where(where, made.elements, zero), expected)
    assert made.scale is not None and made.block == (
        min(rows, case.x.shape[0]),
        min(columns, case.x.shape[1]),
    )
    scaled = torch.where(where, made.spread(made.scale), zero)
    assert same_bits(scaled, torch.where(where, case.spread(), zero))


def has_range(case: Recorded) -> torch.Tensor:
    """Where a block is not all zero: for those every source has a scale of its own."""
    rows, columns = case.settings["block"]
    blocks = Quantizer(format=formats.e4m3, granularity=per_block({-2: rows, -1: columns}))(case.x)
    assert blocks.scale is not None
    return blocks.spread(blocks.scale).expand(case.x.shape) > 0


@pytest.mark.parametrize("case", recorded("torchao", "to_mx", rule="rceil"), ids=str)
def test_power_of_two_scales_rounded_up_are_torchaos_rceil(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        granularity=per_block({-1: 32}),
        scale_format=formats.e8m0,
        scale_rounding=ceil,
    )
    check(case, quantizer, case.spread() > 2.0**-127)


@pytest.mark.parametrize("case", recorded("transformer_engine", "mxfp8_2d"), ids=str)
def test_square_blocks_are_transformer_engines_mxfp8(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.e4m3,
        granularity=per_block({-2: 32, -1: 32}),
        scale_format=formats.e8m0,
        scale_rounding=ceil,
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
        scale_format=formats.e8m0,
        scale_rounding=ceil,
    )
    check(case, quantizer, has_range(case))


@pytest.mark.parametrize(
    "case", recorded("transformer_engine", "CurrentScaling", pow_2_scales=True), ids=str
)
def test_a_power_of_two_scale_of_a_tensor_is_transformer_engines(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.get(case.settings["format"]),
        scale_format=formats.e8m0,
        scale_rounding=ceil,
    )
    made = quantizer(case.x)
    assert made.scale is not None and same_bits(made.scale.flatten(), case["scale"])
    assert same_bits(made.elements, case["elements"])


@pytest.mark.parametrize("case", recorded("torchao", "nvfp4", levels=1), ids=str)
def test_e4m3_scales_are_torchaos_nvfp4_of_one_level(case: Recorded) -> None:
    quantizer = Quantizer(
        format=formats.e2m1, granularity=per_block({-1: 16}), scale_format=formats.e4m3
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
