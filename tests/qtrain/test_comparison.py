"""compare: what differs between two runs, from which step, and that repeats do not differ."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import quiet, rewrite, small, unchecked

from qtrain import compare
from qtrain.cli import main
from qtrain.training.pairs import Losses
from qtrain.training.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs "a", one at 3 bits, one of another seed: 11 logged steps each; and copies of "a", one
    without monitor and baseline."""
    folder = tmp_path_factory.mktemp("runs")
    base: dict[str, Any] = {"batch_size": 64, "epochs": 5, "monitor": 5}
    for name, more in (("a", {}), ("coarse", {"bits": 3}), ("seed", {"seed": 1})):
        train(small(folder, **{**base, **more, "name": name}), say=quiet)  # type: ignore[dict-item]
    shutil.copytree(folder / "a", folder / "again")
    shutil.copytree(folder / "a", folder / "plain")
    (folder / "plain" / "monitor.jsonl").unlink()
    metrics = folder / "plain" / "metrics.jsonl"
    rewrite(metrics, [line for line in unchecked(metrics) if line["branch"] != "baseline"])
    return folder


def test_a_repeat_is_equal_bit_for_bit(runs: Path) -> None:
    found = compare(runs / "a", runs / "again")
    assert (found.settings, found.versions, found.same_samples) == ({}, {}, True)
    assert set(found.losses) == {"baseline", "quantized"}
    assert found.losses == dict.fromkeys(found.losses, Losses(steps=11, differs=None))
    assert found.errors and all(pair.difference == 0 for pair in found.errors)
    text = str(found)
    assert "configuration and versions are the same" in text
    assert "equal bit for bit at all 11 logged steps" in text


def test_fewer_bits_show_in_the_configuration_the_errors_and_not_in_the_baseline(
    runs: Path,
) -> None:
    found = compare(runs / "a", runs / "coarse")
    assert found.settings == {"bits": (None, 3)} and found.same_samples
    assert found.losses["baseline"].differs is None
    assert found.losses["quantized"].differs == 0
    worst = found.errors[0]
    assert worst.difference < -20
    assert [abs(p.difference) for p in found.errors] == sorted(
        (abs(p.difference) for p in found.errors), reverse=True
    )
    grad = {p.layer: p for p in found.errors if p.role == "grad_output (grad_weight)"}
    assert all(abs(p.difference) < 3 for p in grad.values())  # bf16 in both
    gap = found.accuracy["quantized"]
    assert gap.epoch == 5 and gap.gap == gap.b - gap.a and gap.margin is not None
    assert found.accuracy["baseline"].gap == 0


def test_medians_are_those_of_the_file(runs: Path) -> None:
    lines = [json.loads(t) for t in (runs / "a" / "monitor.jsonl").read_text().splitlines()[1:]]
    for pair in compare(runs / "a", runs / "coarse").errors:
        own = [x["sqnr_db"] for x in lines if (x["layer"], x["role"]) == (pair.layer, pair.role)]
        assert pair.a == pytest.approx(np.median([min(float(v), 200) for v in own]))


def test_another_seed_is_said_to_be_other_samples(runs: Path) -> None:
    found = compare(runs / "a", runs / "seed")
    assert not found.same_samples and "not the same samples" in str(found)
    assert found.losses["quantized"].differs == 0
    assert "loss of quantized: bits differ from the first of 11 logged steps" in str(found)


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [1.0, None])
def test_the_first_step_of_another_loss_or_gradient_norm_is_named(
    field: str, value: float | None, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "a", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = unchecked(metrics)
    steps = [line for line in lines if line["kind"] == "step" and line["branch"] == "quantized"]
    for line in steps[6:]:
        line[field] = value
    steps[9]["step"] += 1  # which one run alone logged
    rewrite(metrics, lines)
    found = compare(runs / "a", tmp_path / "run")
    assert found.losses["quantized"] == Losses(steps=10, differs=steps[6]["step"])
    assert found.losses["baseline"] == Losses(steps=11, differs=None)
    assert f"bits differ from step {steps[6]['step']} of 10 logged steps" in str(found)
    same = compare(tmp_path / "run", tmp_path / "run")  # a NaN is equal to itself
    assert same.losses["quantized"].differs is None


def test_what_one_run_alone_has_is_shown_without_a_difference(runs: Path) -> None:
    found = compare(runs / "plain", runs / "a")
    assert set(found.losses) == {"quantized"} and found.losses["quantized"].differs is None
    assert all(math.isnan(p.difference) and p.records[0] == 0 for p in found.errors)
    assert "neither run was monitored" in str(compare(runs / "plain", runs / "plain"))


@pytest.mark.parametrize("other", ["again", "coarse", "seed", "plain"])
def test_it_prints_in_80_columns(runs: Path, other: str) -> None:
    text = str(compare(runs / "a", runs / other)).replace(str(runs), "runs")
    assert max(map(len, text.splitlines())) <= 80


def test_the_command_prints_saves_and_draws(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {name: str(tmp_path / name) for name in ("c.json", "c.csv", "c.svg")}
    line = ["compare", str(runs / "a"), str(runs / "coarse")]
    for name in ("c.json", "c.csv"):
        assert main([*line, "--save", saved[name], "--plot", saved["c.svg"]]) == 0
    assert "median SQNR in dB" in capsys.readouterr().out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["settings"] == {"bits": [None, 3]}
    with open(saved["c.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    found = compare(runs / "a", runs / "coarse")
    assert [float(row["difference"]) for row in rows] == [p.difference for p in found.errors]
    assert len(content["errors"]) == len(rows)
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    for more in (["--save", "x.xls"], ["--plot", "x.pdf"], ["--plot", "/no/such/x.png"]):
        assert main([*line, *more]) == 2
        assert more[0].strip("-") in capsys.readouterr().err


#: What is said of each file where it is damaged.
SAYS = {
    "config.json": r"config\.json: (is no JSON|holds no \w+); restore or delete it",
    "environment.json": r"environment\.json: (is no JSON|holds no .*); restore or delete it",
    "metrics.jsonl": r"metrics\.jsonl: damaged .* Restore it",
    "monitor.jsonl": r"monitor\.jsonl: is no record of a Monitor",
}


def test_a_folder_that_is_no_run_is_named_with_what_it_lacks(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        compare(runs / "a", tmp_path / "none")
    with pytest.raises(ValueError, match="is a file"):
        compare(runs / "a" / "config.json", runs / "a")
    with pytest.raises(ValueError, match=r"config.json, environment.json, metrics.jsonl missing"):
        compare(tmp_path, runs / "a")
    damaged = tmp_path / "run"
    shutil.copytree(runs / "a", damaged)
    for name in ("config.json", "environment.json", "metrics.jsonl", "monitor.jsonl"):
        whole = (damaged / name).read_bytes()
        for part in (whole[: len(whole) // 2], b"[1]\n", b'{"kind": "step", "sqnr_db": 1}\n'):
            (damaged / name).write_bytes(part)
            if name == "config.json" and part.startswith(b"{"):
                continue
            with pytest.raises(ValueError, match=SAYS[name]):
                compare(damaged, runs / "a")
        (damaged / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("metrics.jsonl", "test_accuracy", -1),
        ("metrics.jsonl", "test_accuracy", "0.5"),
        ("metrics.jsonl", "epoch", [1]),
        ("metrics.jsonl", "loss", math.inf),
        ("metrics.jsonl", "branch", None),
        ("monitor.jsonl", "step", math.inf),
    ],
)
def test_a_line_with_another_value_is_damage(
    name: str, field: str, value: object, runs: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(runs / "a", damaged)
    lines = unchecked(damaged / name)
    next(line for line in lines[1:] if field in line)[field] = value
    rewrite(damaged / name, lines)
    with pytest.raises(ValueError, match=SAYS[name]):
        compare(damaged, runs / "a")


def test_names_of_formulas_and_long_settings_are_text(runs: Path, tmp_path: Path) -> None:
    changed = ({"name": "$\\frac{$", "p": "a" * 45, "q": "b"}, {"p": "c", "q": "d" * 45})
    for name, own in zip(("one", "two"), changed, strict=True):
        shutil.copytree(runs / "a", tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    found = compare(tmp_path / "one", tmp_path / "two")
    assert max(map(len, str(found).partition("\n\n")[2].splitlines())) <= 80
    found.plot(tmp_path / "c.svg")
    assert "frac{" in (tmp_path / "c.svg").read_text()
    assert not list(tmp_path.glob(".qtrain-*"))


def test_extra_settings_and_kinds_of_metrics_are_passed_over(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    rewrite(path, [*({**line, "new": [1]} for line in unchecked(path)), {"kind": "new"}])
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "new": 1}))
    assert compare(runs / "a", tmp_path / "run").settings == {"new": (None, 1)}
    assert all(p.difference == 0 for p in compare(runs / "a", tmp_path / "run").errors)
