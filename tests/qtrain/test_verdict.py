"""Verdicts: which rows are a symptom, in which order, how they print, save and are asked for."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import quiet, small

from qtrain import (
    Finding,
    Forward,
    GradInput,
    GradWeight,
    Monitor,
    MonitorRow,
    Recipe,
    Verdict,
    data,
    diagnose,
    first_nonfinite,
    quantize,
    recipes,
    train,
)
from qtrain.cli import main
from qtrain.conversion.overrides import Asked, Chooser
from qtrain.diagnosis.figures import OPERANDS, Rule, often
from qtrain.diagnosis.rules import RULES
from qtrain.inspection.distributions import VALUE_BINS
from qtrain.inspection.row import ROLES
from qtrain.recipe import SLOTS
from quantizers import (
    LSQ,
    OFF,
    LSQPlus,
    Quantizer,
    Rounding,
    absmax,
    ceil,
    e4m3,
    e5m2,
    floor,
    int8,
    per_axis,
    stochastic,
    toward_zero,
)

SOUND: dict[str, Any] = {
    "sqnr_db": 40.0, "cosine": 0.9999, "bias": 0.0, "relative_bias": 0.0, "clipped": 0.0,
    "zeroed": 0.01, "saturated": 0.01, "nonfinite": 0, "low": -1.0, "high": 1.0, "elements": 4096,
    "gain": 1e-4, "values": (0,) * 48 + (96,) + (4000,) + (0,) * 47,
}  # fmt: skip
QUANTIZED: dict[str, Any] = {
    "offset": 0.0, "offset_error": 0.0, "spread": 0.29, "reach": 1.0, "crowded": 1e-4,
}  # fmt: skip


def rows(
    layers: tuple[str, ...] = ("a", "b", "c"), steps: int = 4, **bad: dict[str, Any]
) -> list[MonitorRow]:
    """Records of a sound run, but for {"layer/role": fields}; a scale that moves with the step."""
    found = []
    for step in range(steps):
        for layer in layers:
            for role in ROLES:
                fields = dict(SOUND)
                if role in OPERANDS:
                    scale = 1.0 + step / 100
                    fields |= {**QUANTIZED, "scale": (scale, scale, scale)}
                if role == "weight":
                    fields |= {"update": 0.03, "oscillation": 0.02}
                fields |= bad.get(f"{layer}/{role}", {})
                found.append(MonitorRow(step=step, layer=layer, role=role, **fields))
    return found


def named(verdict: Verdict) -> list[tuple[str, str, str]]:
    return [(f.layer, f.role, f.symptom) for f in verdict.findings]


# Rules --------------------------------------------------------------------------------------------

#: of each symptom: a role, and fields that are just past the threshold and just within it
EDGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "not finite": ("grad_input", {"nonfinite": 1}, {"nonfinite": 0}),
    "dead scale": ("input", {"gain": -0.91}, {"gain": -0.09}),
    "stale range": (
        "weight",
        {"scale": (1.0, 1.0, 1.0), "reach": 2.1},
        {"scale": (1.0, 1.0, 1.0), "reach": 1.9},
    ),
    "range too narrow": (
        "input",
        {"reach": 3.1, "gain": -0.021},
        {"reach": 2.9, "gain": -0.021},
    ),
    "scale too coarse": (
        "input",
        {"reach": 15 / 127, "codes": (1,) * 255},
        {"reach": 16 / 127, "codes": (1,) * 255},
    ),
    "range too wide": ("input", {"reach": 0.015}, {"reach": 0.016, "codes": (1,) * VALUE_BINS}),
    "clipped": ("input", {"clipped": 0.16, "gain": -0.021}, {"clipped": 0.14, "gain": -0.021}),
    "excess error": ("input", {"spread": 1.01}, {"spread": 0.99}),
    "shared noise": (
        "grad_output (grad_input)",
        {"shared": 0.16, "shared_error": 0.04, "axis": 0},  # 0.05 + 5 * 0.04 / sqrt(4) = 0.15
        {"shared": 0.14, "shared_error": 0.04, "axis": 0},
    ),
    "biased rounding": (
        "grad_output (grad_input)",
        {"offset": -0.0125, "offset_error": 0.004},  # 0.002 + 5 * 0.004 / sqrt(4) = 0.012
        {"offset": -0.0115, "offset_error": 0.004},
    ),
    "overflowing sums": ("grad_input (accumulator)", {"clipped": 1.1e-4}, {"clipped": 0.9e-4}),
    "coarse sums": ("output (accumulator)", {"sqnr_db": 2.9}, {"sqnr_db": 3.1}),
    "gain": ("grad_weight", {"gain": 0.101}, {"gain": 0.099}),
    "underflow": ("input", {"zeroed": 0.96}, {"zeroed": 0.955}),  # of the 4000 / 4096 not 0
    "saturated": (
        "input",
        {"saturated": 0.76, "gain": -0.021},
        {"saturated": 0.74, "gain": -0.021},
    ),
    "too few bits": ("grad_output (grad_input)", {"sqnr_db": 2.9}, {"sqnr_db": 3.1}),
    "gradient below noise": ("grad_weight", {"sqnr_db": 4.7}, {"sqnr_db": 4.8}),
    "outlier channels": ("input", {"crowded": 0.11}, {"crowded": 0.09, "outlier": 1000.0}),
    "oscillating weights": ("weight", {"oscillation": 0.51}, {"oscillation": 0.49}),
    "steps too long": ("weight", {"update": 0.33}, {"update": 0.26}),
    "steps too short": ("weight", {"update": 0.9e-4}, {"update": 1.1e-4}),
}


def moving(found: list[MonitorRow]) -> list[MonitorRow]:
    """The same with a range that moves."""
    return [replace(row, high=row.high + row.step / 10) for row in found]


def test_sound_rows_are_no_symptom_and_say_what_was_checked() -> None:
    verdict = diagnose(moving(rows()))
    assert not verdict and verdict.findings == ()
    text = str(verdict)
    assert text.startswith("nothing is wrong in 3 layers, 36 tensors, 4 records of the steps 0 to")
    assert all(rule.symptom in " ".join(text.split()) for rule in RULES)


@pytest.mark.parametrize("symptom", EDGES)
def test_each_rule_fires_past_its_threshold_and_not_before(symptom: str) -> None:
    role, past, within = EDGES[symptom]
    verdict = diagnose(moving(rows(**{f"b/{role}": past})))
    assert verdict and named(verdict)[0] == ("b", role, symptom)
    finding = verdict.findings[0]
    assert (finding.seen, finding.records, finding.first, finding.last) == (4, 4, 0, 3)
    assert symptom not in [
        name for _, _, name in named(diagnose(moving(rows(**{f"b/{role}": within}))))
    ]


def test_every_rule_is_tried_here_and_names_what_it_explains() -> None:
    names = [rule.symptom for rule in RULES]
    assert set(names) == set(EDGES) and len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule.roles) <= set(ROLES) and rule.cause and rule.remedy and rule.source
        # a cause stands above what it explains
        assert all(names.index(other) > names.index(rule.symptom) for other in rule.explains)
        if rule.noise is not None:
            assert rule.over_all is not None


def test_remedies_name_slots_and_overrides_that_exist() -> None:
    for rule in RULES:
        for role in rule.roles:
            fields = EDGES[rule.symptom][1]
            for f in diagnose(moving(rows(**{f"b/{role}": fields}))).findings:
                if role in OPERANDS and "{slot}" in rule.remedy and f.symptom == rule.symptom:
                    assert any(f"{kind}.{operand}" in f.remedy for kind, operand in SLOTS)
                assert "{" not in f.remedy.replace("overrides={", "")
                if "overrides={" in f.remedy:
                    text = f.remedy[f.remedy.index("overrides={") + len("overrides=") :]
                    wanted = eval(text[: text.index("}") + 1])
                    assert Chooser(Asked.of("int8", None, wanted))("b") != recipes.int8(4)


def test_peaks_that_are_cut_off_at_no_cost_are_no_symptom() -> None:
    assert not diagnose(moving(rows(**{"b/input": {"reach": 10.0, "gain": -0.019}})))


def test_what_the_rounding_of_a_scale_cuts_is_no_clip() -> None:
    """NVFP4's scales of single elements are rounded to nearest: half of these lie beyond."""
    layer = quantize(nn.Conv2d(1, 4, 3), recipe="nvfp4")
    monitor = Monitor(layer, every=1)
    layer(torch.rand(4, 1, 8, 8)).sum().backward()
    monitor.end_step()
    (row,) = [row for row in monitor.rows if row.role == "input"]
    assert row.clipped > 0.3 and not diagnose([row])


def test_an_infinite_gradient_now_and_then_is_a_grad_scalers_and_nan_at_the_end_is_not() -> None:
    def with_nan(role: str, step: int) -> Verdict:
        found = [
            replace(row, nonfinite=9)
            if (row.role, row.step, row.layer) == (role, step, "b")
            else row
            for row in rows(steps=12)
        ]
        return diagnose(moving(found))

    assert not with_nan("grad_weight", 5)
    last = with_nan("grad_weight", 11).findings[0]
    assert (last.symptom, last.seen, last.first, last.last) == ("not finite", 1, 11, 11)
    assert named(with_nan("output", 5)) == [("b", "output", "not finite")]


def test_a_scale_that_stands_still_beside_a_range_that_does_too_is_not_stale() -> None:
    still = {"scale": (1.0, 1.0, 1.0), "reach": 2.5}
    assert not diagnose(rows(**{"b/input": still}))
    assert diagnose(moving(rows(**{"b/input": still})))
    # nor is one of two records
    assert not diagnose(moving(rows(steps=2, **{"b/input": still})))


def test_a_figure_counts_that_a_quarter_of_the_records_reaches() -> None:
    assert often([None, None]) is None and often([3.0]) == 3
    assert often([0.0, 9.0]) == 0  # one of two is no habit
    assert often([0.0, 9.0, 0.0, 8.0]) == 8
    assert often([float(i) for i in range(12)]) == 9
    assert often([float(i) for i in range(12)], smallest=True) == 2
    once = rows(steps=12)
    once[3] = replace(once[3], clipped=0.9)
    assert not diagnose(moving(once))


def test_a_mean_that_changes_its_sign_is_noise() -> None:
    found = [
        replace(row, offset=0.01 * (-1) ** row.step) if row.role == "input" else row
        for row in rows()
    ]
    assert not diagnose(moving(found))


# Order --------------------------------------------------------------------------------------------


def test_more_severe_findings_come_first_and_of_equal_ones_the_earlier_in_a_step() -> None:
    wrong = {"reach": 6.0, "gain": -0.05}
    bad = {f"{layer}/{role}": wrong for layer in "abc" for role in OPERANDS}
    bad["b/weight"] = {"reach": 60.0, "gain": -0.05}
    order = [(f.layer, f.role) for f in diagnose(moving(rows(**bad))).findings]
    backward = [role for role in OPERANDS if ROLES.index(role) > ROLES.index("output")]
    expected = [("b", "weight"), ("a", "input"), ("a", "weight"), ("b", "input")]
    expected += [("c", "input"), ("c", "weight")]
    expected += [(layer, role) for layer in "cba" for role in backward]
    assert order == expected


def test_a_product_follows_the_operand_that_it_suffers_from() -> None:
    bad = {"b/input": {"reach": 4.0, "gain": -0.2}, "b/output": {"gain": -0.9}}
    first, second = diagnose(moving(rows(**bad))).findings
    assert (first.role, second.role) == ("input", "output")
    assert second.severity <= first.severity
    assert second.cause == "follows from input: range too narrow"
    # nor does an overflow follow from a clip, or an error from long steps
    nan = {"nonfinite": 5, "sqnr_db": math.nan, "gain": math.nan}
    bad = {"b/weight": {"reach": 4.0, "gain": -0.05}, "b/output": nan, "c/weight": {"update": 99.0}}
    verdict = diagnose(moving(rows(**bad, **{"c/output": {"gain": -0.9}})))
    assert named(verdict)[0] == ("b", "output", "not finite")
    assert not any(f.cause.startswith("follows") for f in verdict.findings)
    alone = diagnose(moving(rows(**{"b/output": {"gain": -0.9}}))).findings
    assert len(alone) == 1 and alone[0].severity > 0.9


def test_an_overflow_is_traced_to_where_it_comes_up_first() -> None:
    nan = {"nonfinite": 5, "sqnr_db": math.nan, "gain": math.nan}
    bad = {f"{layer}/{role}": nan for layer in "bc" for role in ROLES}
    bad |= {"a/grad_input": nan, "a/grad_weight": nan}
    del bad["b/input"], bad["b/weight"]
    verdict = diagnose(moving(rows(**bad)))
    assert named(verdict)[0] == ("b", "output (accumulator)", "not finite")
    assert [f.symptom for f in verdict.findings] == ["not finite"]  # once, not one a tensor
    spread = f"from step 0 on it has spread to {len(bad) - 1} more tensors of 3 layers"
    assert verdict.findings[0].cause.endswith(spread)


def test_nan_of_a_loop_of_ones_own_is_named_once_with_its_step() -> None:
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)))
    monitor = Monitor(model, every=1, layers=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(16, 8)

    def loss() -> torch.Tensor:
        return model(inputs).square().sum()

    for step in range(6):
        if step == 3:
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    lost = [f for f in diagnose(monitor).findings if f.symptom == "not finite"]
    assert [(f.layer, f.role, f.first) for f in lost] == [("2", "weight", 3)]
    assert "more tensors of 3 layers" in lost[0].cause
    with torch.no_grad():
        model[0].weight.nan_to_num_()
        model[2].weight.nan_to_num_()
        model[3].weight.nan_to_num_()
        model[3].bias[1] = math.inf
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    assert first_nonfinite(model, loss) == ("3", "bias")


def test_what_a_layer_returns_by_name_is_looked_at_and_a_loss_is_one_number() -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x / 0}

    model = nn.Sequential(nn.Linear(2, 2), Named())
    x = torch.ones(1, 2)
    assert first_nonfinite(model, lambda: model(x)["logits"].sum()) == ("1", "output")
    for loss in (lambda: None, lambda: model[0](x), lambda: (model[0](x).sum(), 1)):
        with pytest.raises(TypeError, match=r"loss: got .*need a function that returns"):
            first_nonfinite(model, loss)  # type: ignore[arg-type]


def test_what_came_first_is_the_cause_but_for_what_leaves_nothing() -> None:
    found = moving(rows(steps=12, **{"b/weight": {"reach": 4.0, "gain": -0.05}}))
    for i, row in enumerate(found):
        if (row.layer, row.role) == ("a", "input") and row.step >= 2:
            found[i] = replace(row, reach=60.0, gain=-0.05)
        if (row.layer, row.role) == ("c", "weight") and row.step >= 3:
            found[i] = replace(row, gain=-0.95)
    turns = [row for row in found if row.layer != "b" or row.step >= 4]  # b's first record
    for record in (found, turns):
        order = [(f.layer, f.symptom) for f in diagnose(record).findings]
        narrow = "range too narrow"
        assert order == [("c", "dead scale"), ("b", narrow), ("a", narrow)]


def test_sums_that_overflow_are_the_cause_of_their_products_error() -> None:
    over = {"clipped": 0.5, "sqnr_db": 1.0, "nonfinite": 7}
    bad = {"b/output (accumulator)": over, "b/output": {"gain": -0.7, "nonfinite": 7}}
    first, second = diagnose(moving(rows(**bad))).findings
    assert (first.role, first.symptom) == ("output (accumulator)", "overflowing sums")
    assert "required_bits" in first.remedy and "forward.accumulator" in first.remedy
    assert second.cause == "follows from output (accumulator): overflowing sums"
    assert second.remedy == first.remedy and second.severity == 4


def test_an_error_that_is_no_gain_but_noise_is_one_of_too_few_bits() -> None:
    two_bits = {"sqnr_db": 2.0, "gain": -0.25}
    (found,) = diagnose(moving(rows(**{"b/weight": two_bits}))).findings
    assert found.symptom == "too few bits"
    (found,) = diagnose(moving(rows(**{"b/weight": {"sqnr_db": 2.0, "gain": -0.75}}))).findings
    assert found.symptom == "gain"


def test_a_symptom_that_another_explains_is_not_named_beside_it() -> None:
    dead = {"gain": -1.0, "zeroed": 0.97, "reach": math.inf, "clipped": 0.97}
    assert named(diagnose(moving(rows(**{"b/weight": dead})))) == [("b", "weight", "dead scale")]


# Print, save, ask ---------------------------------------------------------------------------------

LONG = "layer4.1.downsample.conv2"


def long_verdict() -> Verdict:
    bad = {f"{LONG}/{role}": EDGES[symptom][1] for symptom, (role, *_) in EDGES.items()}
    layers = (LONG, "b")
    return diagnose(
        moving(rows(layers, **bad, **{"b/grad_output (grad_weight)": {"clipped": 1e9}}))
    )


def test_it_prints_within_80_columns_with_every_cause_once() -> None:
    verdict = long_verdict()
    lines = str(verdict).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for finding in verdict.findings:
        assert finding.symptom in text and text.count(f"{finding.symptom}: {finding.cause}") == 1
        assert f"{finding.layer}: {finding.role}" in text
    rows = [line for line in lines if line.startswith("- ")]
    for row, f in zip(rows, verdict.findings, strict=True):
        assert row.startswith(f"- {f.symptom} ") and f" {f.severity:.1f} " in row
    assert "checked: 2 layers, 24 tensors" in text


def test_it_saves_as_json_and_csv(tmp_path: Path) -> None:
    verdict = diagnose(moving(rows(**{"b/input": {"reach": math.inf, "gain": -0.05}})))
    path = verdict.save(tmp_path / "verdict.json")
    (entry,) = json.loads(path.read_text())
    assert (entry["layer"], entry["symptom"], entry["value"]) == ("b", "range too narrow", "inf")
    with open(verdict.save(tmp_path / "verdict.csv"), newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["remedy"] == entry["remedy"] and float(line["severity"]) == entry["severity"]
    with pytest.raises(ValueError, match=r"\.json or \.csv"):
        verdict.save(tmp_path / "verdict.html")


def test_the_worst_are_the_first() -> None:
    verdict = long_verdict()
    assert verdict.worst(2) == list(verdict.findings[:2])
    assert isinstance(verdict.worst(1)[0], Finding)
    with pytest.raises(ValueError, match="worst: got 0"):
        verdict.worst(0)


def test_a_monitor_its_rows_its_file_and_its_folder_give_one_verdict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    broken = recipes.int8(2)
    model = quantize(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), recipe=broken)
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    with Monitor(model, every=1) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(32, 8)).square().sum().backward()
            optimizer.step()
    verdict = diagnose(monitor)
    assert verdict
    assert repr(diagnose(monitor.rows)) == repr(verdict)
    file = monitor.save(tmp_path / "monitor.jsonl")
    assert repr(diagnose(file)) == repr(diagnose(str(tmp_path))) == repr(verdict)


def test_what_holds_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is recorded; train a few steps"):
        diagnose([])
    with pytest.raises(ValueError, match=r"holds no monitor\.jsonl; run it again with --monitor"):
        diagnose(tmp_path)
    with pytest.raises(TypeError, match="need each a MonitorRow"):
        diagnose([{"layer": "a"}])  # type: ignore[list-item]
    (tmp_path / "monitor.jsonl").write_text("nothing")
    with pytest.raises(ValueError, match="is no record of a Monitor"):
        diagnose(tmp_path)


def test_the_command_reads_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small(tmp_path, monitor=2, baseline=False), say=quiet)
    folder, saved = tmp_path / "run", tmp_path / "verdict.json"
    assert main(["diagnose", str(folder), "--save", str(saved)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing is wrong in 3 layers")
    assert json.loads(saved.read_text()) == []
    assert main(["diagnose", str(folder), "--gradient"]) == 0
    assert "the gradient's cosine, 0.99" in " ".join(capsys.readouterr().out.split())
    (folder / "monitor.jsonl").unlink()
    assert main(["diagnose", str(folder)]) == 2
    assert "--monitor N" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "none")]) == 2


def test_a_rule_counts_decades_and_stops_at_its_most() -> None:
    def rule(**options: Any) -> Rule:
        empty: dict[str, Any] = {"roles": (), "values": lambda rows: []}
        return Rule(symptom="s", cause="c", remedy="r", source="s", **empty, **options)

    plain = rule(threshold=0.1)
    assert plain.severity(1.0, 0.1) == pytest.approx(1.0)
    assert plain.severity(0.1, 0.1) < 0 and plain.severity(math.inf, 0.1) == 3
    below = rule(threshold=0.1, smallest=True, base=0.5, most=2.0)
    assert below.severity(0.01, 0.1) == pytest.approx(1.5)
    assert below.severity(0.0, 0.1) == 2 and below.severity(0.2, 0.1) < 0


# Small runs ---------------------------------------------------------------------------------------


def judged(recipe: Recipe | str, overrides: dict[str, Any] | None = None) -> Verdict:
    """Of a small network that learns the digits for 40 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    model = quantize(net, recipe=recipe, overrides=overrides)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    split = data.load("digits").train
    with Monitor(model, every=5, layers=None) as monitor:
        for images, labels in islice(data.Batches(split, batch_size=32), 40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return diagnose(monitor)


def with_gradient(quantizer: Quantizer) -> Recipe:
    return replace(recipes.int8(), name="other", grad_input=GradInput(grad_output=quantizer))


FP8 = Recipe(
    name="fp8",
    forward=Forward(
        input=Quantizer(format=e4m3), weight=Quantizer(format=e4m3, granularity=per_axis(0, 1))
    ),
    grad_input=GradInput(grad_output=Quantizer(format=e5m2, rounding=stochastic())),
    grad_weight=GradWeight(grad_output=Quantizer(format=e5m2, range=absmax)),
)


@pytest.mark.parametrize("recipe", ["int8", "fp16", "bf16", FP8], ids=str)
def test_a_small_healthy_run_raises_no_alarm(recipe: Recipe | str) -> None:
    assert named(judged(recipe)) == []


@pytest.mark.parametrize("rounding", [floor, ceil, toward_zero], ids=str)
def test_rounding_in_one_direction_is_biased_not_shared_noise(rounding: Rounding) -> None:
    quantizer = Quantizer(format=int8, range=absmax, rounding=rounding)
    first = judged("int8", {"3": with_gradient(quantizer)}).worst(1)[0]
    assert (first.layer, first.role) == ("3", "grad_output (grad_input)")
    assert first.symptom == "biased rounding"


def test_a_layer_of_two_bits_has_too_few() -> None:
    verdict = judged("int8", {"3": recipes.int8(bits=2)})
    assert ("3", "grad_input", "too few bits") in named(verdict)
    assert {f.layer for f in verdict.findings} == {"3"}


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.banner2018(variant="code"),
        Recipe(name="own", forward=Forward(input=LSQPlus(format="int4"), weight=OFF)),
    ],
    ids=lambda recipe: recipe.name,
)
def test_a_real_offset_has_no_steps_to_err_in(recipe: Recipe) -> None:
    """Its elements are values in fp32, whose distances are not those it rounds in."""
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)), recipe=recipe)
    monitor, optimizer = Monitor(model, every=1), torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(4):
        model(torch.randn(32, 16) + 1).square().sum().backward()
        optimizer.step()
    rows = [row for row in monitor.rows if row.role == "input"]
    assert rows and all((row.spread, row.offset, row.reach) == (None,) * 3 for row in rows)
    assert "excess error" not in [finding.symptom for finding in diagnose(monitor).findings]


def test_of_a_learned_range_it_says_what_to_do() -> None:
    own = Recipe(name="own", forward=Forward(input=LSQ(format="int4"), weight=LSQ(format="int4")))
    torch.manual_seed(0)
    model: Any = quantize(nn.Sequential(nn.Linear(16, 16)), recipe=own)
    model(torch.randn(32, 16))
    with torch.no_grad():
        model[0].product.forward_weight_step /= 16
        model[0].product.forward_input_step *= 64
    monitor, optimizer = Monitor(model, every=1), torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(4):
        model(torch.randn(32, 16)).square().sum().backward()
        optimizer.step()
    found = {(f.role, f.symptom): f.remedy for f in diagnose(monitor).findings}
    for symptom in (("input", "dead scale"), ("weight", "range too narrow")):
        assert "learned step or clip" in found[symptom]
