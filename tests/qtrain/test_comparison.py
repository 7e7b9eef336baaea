"""compare: what differs between two runs, where they part, and that repeats do not part."""

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
from qtrain.training.parting import error_parting, loss_parting
from qtrain.training.run_series import Series, read_series
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
    for loss in found.losses.values():
        assert (loss.steps, loss.differs, loss.parts, loss.difference) == (11, None, None, 0)
    assert all(pair.difference == 0 and pair.parts is None for pair in found.errors)
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
    assert worst.difference < -20 and worst.parts == 0
    assert [abs(p.difference) for p in found.errors] == sorted(
        (abs(p.difference) for p in found.errors), reverse=True
    )
    grad = {p.layer: p for p in found.errors if p.role == "grad_output (grad_weight)"}
    assert all(abs(p.difference) < 3 and p.parts is None for p in grad.values())  # bf16 in both
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
    assert found.losses["quantized"].parts is None


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
            with pytest.raises(ValueError, match=f"{name}: is damaged"):
                read_series(damaged)
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
    with pytest.raises(ValueError, match=f"{name}: is damaged"):
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


def test_extra_fields_and_kinds_of_lines_are_passed_over(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "run")
    for name in ("metrics.jsonl", "monitor.jsonl"):
        path = tmp_path / "run" / name
        rewrite(path, [*({**line, "new": [1]} for line in unchecked(path)), {"kind": "new"}])
    assert all(p.difference == 0 for p in compare(runs / "a", tmp_path / "run").errors)


def losses(n: int, *, noise: float, seed: int, gap: float = 0.0, start: int = 0) -> Series:
    """A falling loss, logged every 10 steps; from `start` on higher by the factor 1 + gap."""
    rng = np.random.default_rng(seed)
    return [
        (10 * i, (0.2 + 2 * math.exp(-i / 20)) * (1 + gap * (i >= start) + noise * rng.normal()))
        for i in range(n)
    ]


def test_losses_part_where_their_difference_leaves_its_noise() -> None:
    a, b = losses(120, noise=0.02, seed=0), losses(120, noise=0.02, seed=1, gap=0.1, start=50)
    found = loss_parting((a, b), (a, b))
    assert found.parts is not None and abs(found.parts - 500) <= 10 * found.window
    assert found.difference > 0 and found.differs == 0
    mirrored = loss_parting((b, a), (b, a))
    assert mirrored.parts is not None and mirrored.difference < 0


def test_losses_that_differ_by_noise_alone_do_not_part() -> None:
    """100 pairs of 120 logged steps: at most 2 (windows overlap: some 22 chances a pair)."""
    parted = 0
    for seed in range(100):
        a, b = (losses(120, noise=0.1, seed=2 * seed + k) for k in range(2))
        parted += loss_parting((a, b), (a, b)).parts is not None
    assert parted <= 2


def test_a_difference_of_less_than_a_hundredth_is_none_however_steady() -> None:
    a = losses(60, noise=0, seed=0)
    b = [(step, 1.005 * value) for step, value in a]
    assert loss_parting((a, b), (a, b)).parts is None
    c = [(step, 1.02 * value) for step, value in a]
    assert loss_parting((a, c), (a, c)).parts == 0


def test_the_first_bit_that_differs_may_be_the_gradient_norms() -> None:
    a = losses(20, noise=0, seed=0)
    norms = [(step, value + (step == 70)) for step, value in a]
    assert loss_parting((a, a), (a, norms)).differs == 70
    assert loss_parting((a, a[:4]), (a, a[:4])).window == 0
    assert loss_parting((a, []), (a, [])).steps == 0


def test_errors_part_where_one_leaves_the_others_band_for_two_records() -> None:
    rng = np.random.default_rng(0)
    a: Series = [(5 * i, 30 + float(rng.normal())) for i in range(40)]
    b: Series = [(5 * i + 2, 30 + float(rng.normal())) for i in range(40)]
    assert error_parting(a, b) is None
    fallen = [(step, value - 8 * (step >= 100)) for step, value in b]
    assert error_parting(a, fallen) == error_parting(fallen, a) == 102
    once = [(step, value - 12 * (step == 102)) for step, value in b]
    assert error_parting(a, once) is None
    assert error_parting(a[:3], fallen[-3:]) is None  # too few to make a band
    exact: Series = [(step, math.inf) for step, _ in a]
    assert error_parting(exact, exact) is None and error_parting(exact, a) == 0
    broken = [(step, math.nan if step > 150 else value) for step, value in a]
    assert error_parting(a, broken) == 155
