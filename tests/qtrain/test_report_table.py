"""A report prints in 80 columns, whatever its names and numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qtrain import Report, Row
from qtrain.inspection.row import ROLES


def row(layer: str, role: str, sqnr_db: float = 42.25) -> Row:
    return Row(layer, role, sqnr_db, 0.99998, -7.7e-4, 0.0123, 0.5, 0, -1.5, 0.25, 1000)


def report(names: list[str], roles: tuple[str, ...] = ROLES) -> Report:
    return Report(tuple(row(name, role) for name in names for role in roles))


EXTREME = {
    "sqnr_db": -123.4, "cosine": -0.99999, "bias": -1e-300, "clipped": 1.0, "zeroed": 0.99999,
    "nonfinite": 123456, "low": -1e-300, "note": "a long remark " * 9,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["fc", "blocks.11.attn.qkv", "layer3.17.downsample.0.conv" * 2, "x" * 300]
)
@pytest.mark.parametrize("extreme", [{}, EXTREME], ids=["usual", "extreme"])
def test_no_line_is_wider_than_80_columns(name: str, extreme: dict[str, object]) -> None:
    found = Report(tuple(replace(r, **extreme) for r in report([name, "conv1"]).rows))  # type: ignore[arg-type]
    for text in (str(found), found.table(), found.overview()):
        assert max(map(len, text.splitlines())) <= 80
        assert name in text.replace("\n", "")


def test_every_figure_of_a_row_is_printed() -> None:
    one = replace(row("conv1", "input"), note="why")
    text = str(Report((one, row("conv1", "weight", math.nan), row("fc", "input", math.inf))))
    lines = [line.split() for line in text.splitlines()]
    assert ["-", "input*", "42.2", "0.99998", "-7.70e-4", "1.23", "50.00", "0", "1.5"] in lines
    assert ["conv1"] in lines and ["fc"] in lines and lines[-1] == ["*", "why"]
    assert " NaN " in text and " exact " in text


def test_a_timm_like_network_stands_in_columns() -> None:
    usual = tuple(
        role for role in ROLES if role not in ("weight (grad_input)", "input (grad_weight)")
    )
    found = report([f"blocks.{i}.attn.qkv" for i in range(12)], usual)
    lines = found.overview().splitlines()
    assert len(lines) == 12 + 5  # a heading of four lines and a rule: no name on a line of its own
    assert lines[-1].split() == ["blocks.11.attn.qkv", *["42.2"] * 7]


def test_roles_stand_in_the_order_of_the_layer_that_has_them_all() -> None:
    first = tuple(role for role in ROLES if role != "grad_input")  # the first layer has no such
    rows = (*report(["conv1"], first).rows, *report(["conv2", "fc"]).rows)
    assert Report(rows).roles == list(ROLES)
    assert Report(rows).layers == ["conv1", "conv2", "fc"]


def test_a_report_without_rows_prints_its_headings() -> None:
    assert "SQNR" in str(Report(())) and "SQNR" in Report(()).overview()
    assert str(Report(())).startswith("Nothing was measured.\n")


def test_a_report_prints_a_sentence_the_ten_worst_rows_and_how_many_more() -> None:
    rows = [row(f"layer{i}", "input", float(20 + i)) for i in range(12)]
    rows.append(replace(row("layer11", "output", -3.0), nonfinite=1))
    text = str(Report(tuple(rows)))
    sentence, table, more = text.split("\n\n")
    assert " ".join(sentence.split()) == (
        "output of 'layer11' has the lowest SQNR, -3.0 dB; the median of 13 tensors in 12 layers "
        "is 25.0 dB; in 1 the error exceeds the signal; 1 hold NaN or infinity."
    )
    broken = replace(row("layer12", "input", math.nan), nonfinite=9)
    both = " ".join(str(Report((*rows, broken))).split())
    assert "the median of 14 tensors in 13 layers (1 have none) is 25.0 dB" in both
    named = [line for line in table.splitlines() if line.startswith("layer") and " " not in line]
    assert named == ["layer11", *(f"layer{i}" for i in range(9))]  # layer11: its output alone
    assert table.count("- output") == 1 and table.count("- input") == 9
    assert more == "3 more: report.table()" and "layer10" in Report(tuple(rows)).table()


def test_a_nan_is_the_worst_and_a_short_report_prints_whole() -> None:
    report = Report((row("fc", "input"), row("fc", "weight", math.nan)))
    assert str(report).startswith("weight of 'fc' has the lowest SQNR, NaN dB; the median of 2")
    assert report.table() in str(Report((report.rows[0],))) or "more:" not in str(report)


def test_the_worst_rows_stand_under_the_layer_of_the_worst() -> None:
    rows = (row("a", "input", 9.0), row("b", "input", 5.0), row("a", "weight", 1.0))
    lines = [line.split()[:2] for line in Report(rows).table(3).splitlines()[3:]]
    assert lines == [["a"], ["-", "weight"], ["-", "input"], ["b"], ["-", "input"]]


def test_notes_of_several_rows_are_told_apart() -> None:
    whys = {"input": "why", "weight": "other", "output": "why"}
    rows = [replace(row("conv1", role), note=note) for role, note in whys.items()]
    text = Report(tuple(rows)).table()
    assert "- input*1 " in text and "- weight*2 " in text and "- output*1 " in text
    assert text.endswith("*1 why\n*2 other")
