"""What the READMEs and docs print as measured is what the stored results say."""

from __future__ import annotations

import importlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from experiments import headline, small_tasks
from experiments.int8_vs_fp32 import norm_and_gradient as script
from experiments.microscope.exact import share
from experiments.readme import held
from qtrain import Difference, read_runs, train, training_recipe

ROOT = Path(__file__).parents[1]


def stored(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "experiments" / path).read_text(encoding="utf-8"))
    return found


#: The pages that print what the whole of the project measured.
MEASURED = ("README.md", "docs/measurements.md")


def prose(*paths: str) -> str:
    """The texts with their line breaks as spaces."""
    return " ".join(" ".join((ROOT / path).read_text(encoding="utf-8").split()) for path in paths)


def smoke_tests() -> list[str]:
    """Of the page that keeps the small runs of the papers' experiments."""
    page = (ROOT / "experiments/confirm/smoke_tests.md").read_text(encoding="utf-8")
    cells = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    found = {row[1].strip(): [float(x) for x in re.findall(r"\d+\.\d+", row[3])] for row in cells}
    off, on = found["without weight decay accuracy is lower"][:2]
    corrected = found["eq. 4's rates do what weight decay does"][0]
    norms = found["norms can be set instead of the rate"][0]
    backward = [found[f"{bits} bits: the same"][0] for bits in (4, 6, 8)]
    full = found["CIFAR-10: the same, both with range batch-norm"][1]
    int8, plain = found["CIFAR-10: 8 bits, the house recipe, are as good as full precision"][:2]
    text = found["8 bits, attention too, predict tokens as well"]
    return [
        f"from {on:.1f} to {off:.1f} % top-1 (6 seeds), with eq. 4's rates it comes back to "
        f"{corrected:.1f} %, with norms set instead of the rate to {norms:.1f} %",
        "is {:.2f}, {:.2f} and {:.3f} at 4, 6 and 8 bits".format(*backward),
        f"{int8:.1f} against {full:.1f} % top-1), which itself costs {plain - full:.1f} points",
        f"predicts {text[0]:.1f} % of characters against {text[1]:.1f} %",
    ]


def small(experiment: str, study: str) -> tuple[dict[str, list[float]], dict[str, Difference]]:
    """Of a small study the values of each arm, and the differences to its baseline."""
    own = importlib.import_module(f"experiments.{experiment}.accuracy").STUDIES[study]
    runs = read_runs(ROOT / "experiments" / experiment / "results" / f"{study}.json")
    values = {arm: list(small_tasks.values(own, runs, arm).values()) for arm in own["recipes"]}
    return values, small_tasks.judged(own, runs)


def learned() -> list[str]:
    values, found = small("learned", "digits")
    assert found["learned 4"].verdict == "equal within 0.015"
    gap = found["learned 2"].interval
    return [
        f"end {-100 * gap.value:.1f} points below, [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]",
        f"/learned/README.md), {len(values['fp32'])} seeds)",
    ]


def updates() -> list[str]:
    both = [small("updates", study) for study in ("digits", "text")]
    assert {one.verdict for _, found in both for one in found.values()} == {
        "equal within 0.015", "equal within 0.03"
    }  # fmt: skip
    return [f"/updates/README.md), {len(both[0][0]['kahan'])} seeds)"]


def norm_and_gradient() -> list[str]:
    found = stored("int8_vs_fp32/results/norm_and_gradient-digits.json")["sqnr_db"]
    own = found["range"]
    others = [x for role in ("input", "weight", "grad_weight") for x in own[role].values()]
    gradient = own["grad_output (grad_input)"].values()
    rows = []
    for norm, roles in found.items():
        values = roles["grad_output (grad_input)"].values()
        figures = (min(values), statistics.median(values), max(values))
        rows.append(f"| {norm} | " + " | ".join(f"{x:.1f}" for x in figures) + " |")
    return [
        f"stay at {min(others):.0f} to {max(others):.0f} dB in every layer, the 8-bit layer "
        f"gradient at {min(gradient):.0f} to {max(gradient):.0f}:",
        *rows,
    ]


def test_the_norms_and_the_gradient_of_a_run_are_stored(tmp_path: Path) -> None:
    changes = {"model": "resnet20", "epochs": 1, "batch_size": 256, "threads": 1}
    train(
        training_recipe(
            "int8-resnet18", runs_dir=str(tmp_path), name="tiny", baseline=False, **changes
        )
    )
    checkpoint = str(tmp_path / "tiny" / "checkpoint.pt")
    script.main([checkpoint, "--batch-size", "16", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "norm_and_gradient-tiny.json").read_text(encoding="utf-8"))
    assert found["config"]["epochs"] == 1 and found["environment"]["threads"] == "1"
    gradients = [roles["grad_output (grad_input)"] for roles in found["sqnr_db"].values()]
    assert list(found["sqnr_db"]) == ["l2", "l1", "range"] and len(gradients[0]) == 19
    assert all(0 < x < 60 for own in gradients for x in own.values())
    assert gradients[0] != gradients[1] != gradients[2]


#: the label in docs/measurements.md:
#: the file in experiments/speed/results, its network, the method and its layout
STEPS = {
    "ResNet-18, 32x32, batch 64: int8, range batch-norm, eager, 3 rows in the process":
        ("resnet18-three-rows", "resnet18", "int8 range-norm", "channels_last"),
    "the same in the table of 19 rows":
        ("resnet18", "resnet18", "int8 range-norm", "channels_last"),
    "the same, unfused norms (`norm=None`)": ("resnet18", "resnet18", "int8", "channels_last"),
    '`int8(unit="bf16")`, eager':
        ("resnet18", "resnet18", "int8 range-norm bf16-units", "channels_last"),
    "FP16 outputs kept in 16 bits, eager":
        ("resnet18", "resnet18", "int8 range-norm fp16-stored", "channels_last"),
    "a machine without VNNI (integer units refused)":
        ("resnet18-without-vnni", "resnet18", "int8 range-norm", "channels_last"),
    "contiguous instead of channels-last":
        ("resnet18", "resnet18", "int8 range-norm", "contiguous"),
    "`banner2018`": ("resnet18", "resnet18", "banner2018", "channels_last"),
    "what users would run instead: bf16 autocast":
        ("resnet18", "resnet18", "bf16 autocast", "channels_last"),
    "QPyTorch, 8-bit block floating point": ("resnet18", "resnet18", "QPyTorch", "contiguous"),
    "ResNet-18, 224x224, batch 16: int8, range batch-norm":
        ("larger", "resnet18-imagenet", "int8 range-norm", "channels_last"),
    "ResNet-50, 224x224, batch 8: int8, range batch-norm":
        ("larger", "resnet50", "int8 range-norm", "channels_last"),
    "ViT (DeiT-Ti), batch 16: int8, attention too": ("larger", "vit", "int8", "contiguous"),
    "Transformer block, 2048 tokens, width 512: int8, attention too":
        ("transformer-block", "transformer-block", "int8", "contiguous"),
}  # fmt: skip


def speed_row(file: str, network: str, *wanted: str, mode: str = "eager") -> dict[str, Any]:
    """The row of a file's network; wanted: its method and layout."""
    tables = stored(f"speed/results/{file}.json")["tables"]
    rows = next(table["rows"] for table in tables if table["network"] == network)
    found: dict[str, Any] = next(
        row for row in rows if (row["method"], row["layout"], row["mode"]) == (*wanted, mode)
    )
    return found


def ratio(values: list[float]) -> str:
    low, median, high = values
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def growth() -> list[str]:
    found = stored("speed/results/growth.json")
    slopes = {kind: 1000 * line[1] for kind, line in found["per_layer"]["lines"].items()}
    batches = {row["batch"]: row["ratio"][1] for row in found["sweeps"]["batch"]}
    own = speed_row("resnet18-three-rows", "resnet18", "int8 range-norm", "channels_last")
    products = own["parts"]["seconds"]["products"] / own["parts"]["step"]
    return [
        f"one more tiny `Conv2d` {slopes['int8']:.2f} ms, forward and backward, against "
        f"{slopes['fp32']:.2f} ms",
        f"takes {batches[8]:.2f} of full precision at batch 8, {batches[128]:.2f} at batch 128",
        f"Quantizers take {100 * own['quantizers_share']:.0f} % of the int8 step, products "
        f"{100 * products:.0f} %",
    ]


def microscope() -> list[str]:
    cost = stored("microscope/results/cost.json")
    wall = {row["sensitivity by"]: row["wall (s)"] for row in cost["sensitivity"]}
    found = stored("microscope/results/leave_one_out_layer.json")
    rho, low, high = found["spearman"]["gain_cosine"]
    runs = [r for r in stored("microscope/results/healthy_again.json")["runs"].values()]
    healthy = [bool(run["findings"]) for run in runs if run["healthy"]]
    return [
        f"other seeds {share(sum(healthy), len(healthy))}, of the healthy runs",
        f"takes {wall['product']:.0f} s by product and {wall['role']:.0f} s by role",
        f"a record of a `Monitor` {cost['monitor'][1]['% at every=100']:.1f} % of 100 steps",
        f"rho = {rho:.2f} [{low:.2f}, {high:.2f}] ({len(found['seeds'])} seeds; retraining with "
        f"itself: {found['halves'][0]:.2f})",
    ]


@pytest.mark.parametrize(
    "sentences",
    [
        smoke_tests,
        learned,
        updates,
        norm_and_gradient,
        growth,
        microscope,
    ],
    ids=lambda sentences: sentences.__name__,
)
def test_the_sentences_on_what_was_measured_hold_the_stored_numbers(sentences: Any) -> None:
    text = prose(*MEASURED)
    assert [sentence for sentence in sentences() if sentence not in text] == []


@pytest.mark.parametrize("label", STEPS)
def test_the_table_of_steps_holds_the_stored_ratios(label: str) -> None:
    row = speed_row(*STEPS[label])
    begin, end = f"| {label} | {ratio(row['ratio'])} |", f" | {row['saved_ratio']:.2f} |"
    lines = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(begin) and line.endswith(end) for line in lines)


def test_the_rows_of_compiled_steps_and_of_peers_hold_the_stored_ratios() -> None:
    wanted = ("int8 range-norm", "channels_last")
    compiled = speed_row("resnet18-compiled", "resnet18", *wanted, mode="compiled")
    block = ("transformer-block", "transformer-block")
    torchao, qtorch = (
        speed_row(*block, name, "contiguous")["ratio"] for name in ("torchao int8", "QPyTorch")
    )
    text = prose("docs/measurements.md")
    assert f"compiled full precision | {ratio(compiled['ratio_to_compiled'])} |" in text
    assert f"mixed precision; QPyTorch | {ratio(torchao)}; {ratio(qtorch)} |" in text


def test_the_readmes_table_is_what_the_results_give() -> None:
    assert held(ROOT / "README.md") == headline.text()


def test_the_page_of_recipes_holds_the_differences_of_those_that_differ() -> None:
    text = prose("docs/recipes.md")
    for study, scale, unit, sign in (("digits", 100, "points", -1), ("text", 1, "nats", 1)):
        found = small("recipes", study)[1]
        assert {n for n, d in found.items() if d.verdict.startswith("differs")} == {"hbfp4"}
        gap = found["hbfp4"].interval
        low, high = sorted(sign * scale * x for x in (gap.low, gap.high))
        places = 1 if unit == "points" else 2
        loss = f"{sign * scale * gap.value:.{places}f} {unit} [{low:.{places}f}, {high:.{places}f}]"
        assert f"loses {loss}" in text
    undecided = {n for n, d in found.items() if d.verdict.startswith("too little")}
    assert undecided == {"banner2018", "luq"}
