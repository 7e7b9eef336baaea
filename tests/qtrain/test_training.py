from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import assert_same_run, lines, quiet, small, states

from qtrain.training import trainee as branch_module
from qtrain.training.intervals import accuracy_gap, mean_difference
from qtrain.training.named import training_recipe
from qtrain.training.nonfinite import NonFiniteError
from qtrain.training.page import render
from qtrain.training.record import read_run
from qtrain.training.train import build_branches, load_data, train
from qtrain.training.trainee import Branch


def test_a_run_leaves_curves_gap_errors_and_all_files(tmp_path: Path) -> None:
    result = train(small(tmp_path), say=quiet)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint.pt", "config.json", "environment.json", "metrics.jsonl", "summary.json",
        "report.txt", "curves.png", "errors.json", "errors.csv", "errors.png", ".lock",
        "metrics.csv", "report.html",
    }  # fmt: skip
    assert [(e["epoch"], e["branch"]) for e in result.epochs] == [
        (1, "baseline"), (1, "quantized"), (2, "baseline"), (2, "quantized"),
    ]  # fmt: skip
    assert result.gap is not None and result.gap.low < result.gap.value < result.gap.high
    difference = result.accuracy["quantized"] - result.accuracy["baseline"]
    assert result.gap.value == pytest.approx(difference, abs=1e-12)
    assert result.gap.n == 360
    text = str(result)
    assert (tmp_path / "run" / "report.txt").read_text() == result.text()
    for part in ("full precision", "int8", "accuracy gap", "95 % interval", "SQNR"):
        assert part in text
    assert "- grad_weight" in result.text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"] == result.accuracy
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"], config["model"], config["seed"]) == ("int8", "mlp", 0)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment[0]["torch"] == torch.__version__
    for plot in ("curves.png", "errors.png"):
        assert (tmp_path / "run" / plot).read_bytes().startswith(b"\x89PNG")


def test_the_same_run_twice_has_the_same_bits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(small(tmp_path, name=name), say=quiet)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_seed_matters(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(small(tmp_path, name=str(seed), seed=seed, epochs=1), say=quiet)
    first, second = (states(tmp_path / n / "checkpoint.pt") for n in "01")
    assert not torch.equal(first["/baseline/model/1.weight"], second["/baseline/model/1.weight"])


def test_a_recipe_that_is_off_trains_exactly_as_the_baseline(tmp_path: Path) -> None:
    result = train(small(tmp_path, recipe="fp32"), say=quiet)
    log = [{k: v for k, v in e.items() if k != "branch"} for e in lines(result.folder.metrics)]
    assert log[0::2] == log[1::2]
    assert result.gap is not None and result.gap.value == 0
    assert result.report is None


def test_both_models_start_from_the_same_weights(tmp_path: Path) -> None:
    config = small(tmp_path, model="resnet20", norm="range")
    baseline, quantized = build_branches(config, load_data(config), torch.device("cpu"))
    for (name, a), (_, b) in zip(
        baseline.model.named_parameters(), quantized.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_zero_init_residual_reaches_both_models() -> None:
    config = training_recipe("int8", model="resnet20", zero_init_residual=True)
    for branch in build_branches(config, load_data(config), torch.device("cpu")):
        scales = {n: p for n, p in branch.model.named_parameters() if n.endswith("bn2.weight")}
        assert len(scales) == 9 and not any(p.any() for p in scales.values())


def test_without_baseline_only_the_quantized_model_trains_and_trains_alike(tmp_path: Path) -> None:
    train(small(tmp_path, name="both"), say=quiet)
    alone = train(small(tmp_path, name="alone", baseline=False), say=quiet)
    assert alone.gap is None and "accuracy of int8" in str(alone)
    both = [line for line in lines(tmp_path / "both/metrics.jsonl") if line["branch"] != "baseline"]
    assert lines(tmp_path / "alone/metrics.jsonl") == both


def test_training_leaves_random_state_and_threads_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(small(tmp_path, epochs=1), say=quiet)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_training_learns(tmp_path: Path) -> None:
    result = train(small(tmp_path, epochs=6, batch_size=64), say=quiet)
    assert all(accuracy > 0.9 for accuracy in result.accuracy.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 1e-3},
        {"schedule": "step", "milestones": (1,), "warmup": 0.0},
        {"nesterov": True, "label_smoothing": 0.1, "clip_grad": 0.5},
    ],
    ids=["adamw", "step", "nesterov-smoothing-clipping"],
)
def test_every_setting_trains(tmp_path: Path, changes: dict[str, object]) -> None:
    result = train(small(tmp_path, **changes), say=quiet)
    first, last = result.epochs[0], result.epochs[-2]
    assert last["train_loss"] < first["train_loss"]


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    config = small(tmp_path, clip_grad=1e-3, momentum=0.0, weight_decay=0.0)
    branch = build_branches(config, load_data(config), torch.device("cpu"))[0]
    before = [p.detach().clone() for p in branch.model.parameters()]
    branch.step(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), step=0, rate=1.0)
    moved = [
        (p.detach() - b).norm() for p, b in zip(branch.model.parameters(), before, strict=True)
    ]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=1e-3)


def make_branch(tmp_path: Path, model: nn.Module) -> Branch:
    return Branch("quantized", "int8", model, small(tmp_path))


class Spoil(torch.autograd.Function):
    """Identity whose gradient is NaN."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad * float("nan")


class SpoilGradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Spoil.apply(x)
        return result


def test_a_nan_weight_stops_training_and_is_named(tmp_path: Path) -> None:
    config = small(tmp_path)
    branch = build_branches(config, load_data(config), torch.device("cpu"))[1]
    with torch.no_grad():
        branch.model[3].weight[0, 0] = float("nan")  # type: ignore[index,union-attr]
    before = {k: v.clone() for k, v in branch.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"int8: stopped at step 7 .*'3', role weight") as e:
        branch.step(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), step=7, rate=0.1)
    assert (e.value.layer, e.value.role, e.value.step) == ("3", "weight", 7)
    after = branch.model.state_dict()
    for name in (n for n, _ in branch.model.named_parameters()):
        assert torch.equal(before[name].nan_to_num(9.0), after[name].nan_to_num(9.0)), name


def test_a_nan_gradient_is_named_before_it_reaches_a_weight(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), SpoilGradient(), nn.Linear(8, 10))
    weight = model[1].weight.detach().clone()  # type: ignore[union-attr,operator]
    branch = make_branch(tmp_path, model)
    with pytest.raises(NonFiniteError) as error:
        branch.step(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), step=0, rate=0.1)
    assert (error.value.layer, error.value.role) == ("1", "grad_output")
    assert torch.equal(model[1].weight, weight)  # type: ignore[union-attr,arg-type]


def test_an_overflowing_output_and_a_bad_input_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    targets = torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        model[1].weight.fill_(3e38)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteError) as error:
        make_branch(tmp_path, model).step(torch.randn(8, 1, 8, 8) * 100, targets, step=0, rate=0.1)
    assert (error.value.layer, error.value.role) == ("1", "output")
    bad = torch.full((8, 1, 8, 8), float("inf"))
    with pytest.raises(NonFiniteError) as error:
        make_branch(tmp_path, model).step(bad, targets, step=0, rate=0.1)
    assert (error.value.layer, error.value.role) == ("model", "input")


def test_a_diverging_run_stops_with_one_error_and_keeps_its_metrics(tmp_path: Path) -> None:
    config = small(tmp_path, lr=1e12, warmup=0.0, schedule="constant")
    with pytest.raises(NonFiniteError, match="Try a lower lr"):
        train(config, say=quiet)
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["step"] == 0
    record = read_run(tmp_path / "run")
    assert "Try a lower lr" in record.diverged and not record.finished
    assert "precision: stopped at step" in render(record)
    train(small(tmp_path, overwrite=True), say=quiet)
    assert read_run(tmp_path / "run").diverged == ""


def test_dropout_is_the_same_in_both_models_and_differs_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(step: int) -> torch.Tensor:
        branch_module.seed_step(3, step)
        return torch.rand(4)

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))


def test_the_interval_of_the_gap_is_paired() -> None:
    right = torch.arange(100) < 90
    same = accuracy_gap(right, right)
    assert same.value == 0 and same.low == -same.high < 0  # agreement leaves some doubt
    other = right.clone()
    other[:10] = False
    gap = accuracy_gap(right, other)
    assert gap.value == pytest.approx(-0.1)
    assert gap.low < -0.1 < gap.high < 0
    # the same accuracies with errors on other samples tell less
    shuffled = torch.arange(100) >= 20
    assert accuracy_gap(right, shuffled).high > gap.high
    with pytest.raises(ValueError, match="both"):
        accuracy_gap(right, right[:5])


def test_the_interval_covers_the_true_gap_about_as_often_as_it_says() -> None:
    # n = 2000 trials of 200 samples; 5 sigma of a coverage of 0.95 is 0.024
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(2000):
        draws = torch.rand(200, generator=generator)
        gap = accuracy_gap((draws < 0.90), (draws > 0.05) & (draws < 0.92))  # true gap: -0.03
        hits += gap.low <= -0.03 <= gap.high
    assert abs(hits / 2000 - 0.95) < 0.024


def test_differences_over_seeds_use_students_t() -> None:
    interval = mean_difference([1.0, 2.0, 3.0], [1.5, 2.0, 4.0])
    assert interval.value == pytest.approx(0.5)
    assert interval.high - 0.5 == pytest.approx(4.302652729911275 * 0.5 / 3**0.5)
    with pytest.raises(ValueError, match="two pairs"):
        mean_difference([1.0], [1.0])


def test_a_named_runs_norm_can_be_left_to_the_recipe(tmp_path: Path) -> None:
    settings: Any = {"model": "mlp", "epochs": 1, "baseline": False, "runs_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"norm: got 'range'.*--norm recipe"):
        train(training_recipe("int8-resnet18", **settings), say=quiet)
    result = train(training_recipe("int8-resnet18", norm="recipe", **settings), say=quiet)
    assert 0 < result.accuracy["quantized"] <= 1
