"""qtrain train with updates in low precision, and updates as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_switching_runs import _stopped
from training_cases import assert_same_run, quiet, small

from qtrain import (
    Expanded,
    LowPrecision,
    TrainConfig,
    Update,
    UpdateReport,
    diagnose,
    low_precision_,
    save_update,
)
from qtrain.cli import main
from qtrain.recipe_file import made_of, text_of
from qtrain.training.train import train
from qtrain.training.trainee import Branch
from qtrain.weights.updates.named import NAMED, find, lasting
from quantizers import (
    FloatFormat,
    IntFormat,
    Quantizer,
    bf16,
    groups,
    int8,
    round_to,
    udynamic8,
)

GROUPS = Quantizer(format="int8", granularity=groups(7))
UPDATES = [
    *NAMED.values(),
    Update(
        weight=FloatFormat(6, 9),
        rounding="stochastic(8)",
        compensation="bf16",
        gradient=Quantizer(format="e5m2", range=None),
        states={"*": Quantizer(format="int8", granularity=groups(32))},
    ),
    Update(weight=Quantizer(format=IntFormat(4), rounding="stochastic")),
    Update(
        states={"exp_avg": Expanded(size=32, reach=100352.0), "exp_avg_sq": "bf16"}, min_size=128
    ),
    Update(states={"moment 1": "bf16", 'of "é": #2': GROUPS, "yes": "fp16"}),
]


@pytest.mark.parametrize("update", UPDATES, ids=str)
def test_a_file_gives_the_update_back(update: Update, tmp_path: Path) -> None:
    path = save_update(update, tmp_path / "mine.yaml")
    assert find(str(path)) == update and made_of(text_of(update), Update) == update
    named = [name for name, own in NAMED.items() if own == update]
    assert lasting(str(path)) == (named[0] if named else path.read_text())


def test_a_mapping_of_states_in_one_line() -> None:
    text = 'states: {"*": bf16, exp_avg: e4m3}\n'
    assert find(text) == Update(states={"*": "bf16", "exp_avg": "e4m3"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wight: bf16\n", "wight.*did you mean 'weight'"),
        ("weight: int8\n", "whose elements need a scale"),
        ("states:\n  exp_avg: bf17\n", "states.exp_avg: got 'bf17'"),
        ("weight: bf16\nrounding: stochastic(99)\n", "random_bits"),
        ("rounding: nearest_even\n", "nothing that is in low precision"),
    ],
)
def test_what_a_file_gets_wrong_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for given in (text, str(path)):
        with pytest.raises(ValueError, match=said):
            find(given)
    with pytest.raises(ValueError, match=r"update: got 'bf61'.*bf16"):
        find("bf61")
    with pytest.raises(ValueError, match="is no file"):
        find("none.yaml")
    with pytest.raises(ValueError, match=r"ends in \.yaml"):
        save_update(NAMED["bf16"], tmp_path / "mine.json")


OWN: dict[str, dict[str, Any]] = {
    "sgd": {"update": 'weight: bf16\nrounding: stochastic(8)\nstates:\n  "*": bf16\n'},
    "kahan": {"update": "bf16-kahan", "switch": ("0.5:fp32",)},
    "adamw": {"update": "adam-8bit", "optimizer": "adamw", "lr": 1e-3},
}


@pytest.mark.parametrize("kind", OWN)
def test_a_stopped_run_resumes_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtrain.training import run

    whole = tmp_path / "whole"
    train(small(whole, checkpoint_every=1, **OWN[kind]), say=quiet)
    monkeypatch.setattr(run.Run, "train", _stopped(run.Run.train, 4))
    with pytest.raises(InterruptedError):
        train(small(tmp_path, checkpoint_every=1, **OWN[kind]), say=quiet)
    monkeypatch.undo()
    train(small(tmp_path, checkpoint_every=1, resume=True, **OWN[kind]), say=quiet)
    assert_same_run(whole / "run", tmp_path / "run")
    rows = [json.loads((p / "run" / "updates.json").read_text()) for p in (whole, tmp_path)]
    assert rows[0] == rows[1] and {row["steps"] for row in rows[0]} == {10}


def test_the_quantized_weights_alone_are_rounded(tmp_path: Path) -> None:
    result = train(small(tmp_path, update="bf16-stochastic"), say=quiet)
    for key, rounded in (("baseline", False), ("quantized", True)):
        parameters = list(result.models[key].parameters())
        same = [torch.equal(p, round_to(p.detach(), bf16)) for p in parameters]
        assert all(same) if rounded else not any(same)
    assert "update bf16-stochastic" in str(result)


def test_the_configuration_of_an_update(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, own = TrainConfig(recipe="int8"), TrainConfig(recipe="int8", update="bf16")
    assert own.run_name == "int8-bf16-resnet18-digits-seed0"
    assert own.differences({**plain.to_dict()}) == ["update (stored None, now 'bf16')"]
    older = plain.to_dict()
    del older["update"]
    assert plain.differences(older) == []
    path = save_update(Update(weight=Quantizer(format=int8)), tmp_path / "mine.yaml")
    kept = TrainConfig(recipe="int8", update=str(path))
    assert TrainConfig.from_dict(kept.to_dict()) == kept and "own-update" in kept.run_name
    assert main(["train", "int8", "--update", "bf61"]) == 2
    assert "did you mean 'bf16'" in capsys.readouterr().err


def test_a_state_that_the_optimizer_lacks_refuses_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "mlp", "--epochs", "1", "--runs-dir", str(tmp_path / "runs")]
    assert main(["train", "int8", "--update", "adam-8bit", *arguments]) == 2
    assert "SGD keeps no exp_avg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_refused_in_its_first_step_leaves_nothing(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ValueError("layer 'x': cannot be run")

    config = small(tmp_path / "runs")
    if there:
        (tmp_path / "runs" / "run").mkdir(parents=True)
        (tmp_path / "runs" / "run" / "notes.txt").write_text("of the user's")
    monkeypatch.setattr(Branch, "step", refused)
    with pytest.raises(ValueError, match="cannot be run"):
        train(config, say=quiet)
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == ({"runs", "run", "notes.txt", ".lock"} if there else set())


def test_an_update_has_the_same_names_everywhere(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    for name in ("bf16-kahan", str(save_update(NAMED["bf16-kahan"], tmp_path / "mine.yaml"))):
        handle = low_precision_(torch.optim.SGD(net.parameters(), lr=0.1), name, model=net)
        assert handle.update == NAMED["bf16-kahan"]
        handle.remove()
    with pytest.raises(ValueError, match="did you mean 'bf16-kahan'"):
        low_precision_(torch.optim.SGD(net.parameters(), lr=0.1), "bf16-kahn")


def small_steps(update: Update, gradients: list[list[float]]) -> LowPrecision:
    net = torch.nn.Linear(len(gradients[0]), 1, bias=False)
    torch.nn.init.ones_(net.weight)
    adam = torch.optim.Adam(net.parameters(), lr=2**-12, betas=(0.5, 0.5))
    handle = low_precision_(adam, update, model=net)
    for gradient in gradients:
        net.weight.grad = torch.tensor([gradient])
        adam.step()
    return handle


def test_diagnose_names_updates_that_are_lost() -> None:
    gradients = [[1.0, 2.0, -1.0, 0.5]] * 5
    nearest = small_steps(Update(weight="bf16"), gradients)
    (finding,) = diagnose(nearest).findings
    assert (finding.layer, finding.role, finding.symptom) == (
        "(model)", "weight update", "updates lost",
    )  # fmt: skip
    assert (finding.value, finding.seen, finding.first, finding.last) == (1.0, 5, 0, 4)
    assert finding.severity == 2 and "stochastic" in str(diagnose(nearest.report()))
    for update in (
        Update(weight="bf16", rounding="stochastic"),
        Update(weight="bf16", compensation="bf16"),
        Update(weight=FloatFormat(8, 12)),
    ):
        assert not diagnose(small_steps(update, gradients))


def test_diagnose_names_moments_that_became_zero() -> None:
    """An outlier in a group: 1e-6 of its square is 0 in e4m3, of which 2^-9 / 448 is the least."""
    gradients = [[1.0, 1.0, 1.0, 1.0], [1.0, 1e-4, 1.0, 1.0], [1.0, 1e-4, 0.0, 1.0]]
    square = Quantizer(format="e4m3", granularity=groups(4))
    plain = small_steps(Update(states={"exp_avg_sq": square}), [[1.0, 1e-4, 1.0, 1.0]] * 3)
    (finding,) = diagnose(plain).findings
    assert (finding.symptom, finding.role) == ("divisor rounded to 0", "weight exp_avg_sq")
    assert finding.value == 0.25 and (finding.first, finding.last, finding.seen) == (0, 2, 3)
    assert "kept in e4m3, groups of 4" in finding.cause and "udynamic8" in finding.remedy
    row = replace(plain.report().rows[0], kept="udynamic8, groups of 4")
    (finding,) = diagnose(UpdateReport((row,))).findings
    assert "udynamic8" in finding.cause and "udynamic8" not in finding.remedy
    for kept in (Expanded(size=4), bf16, Quantizer(format=udynamic8, granularity=groups(4))):
        assert not diagnose(small_steps(Update(states={"exp_avg_sq": kept}), gradients))
    with pytest.raises(ValueError, match="no weight or state"):
        diagnose(UpdateReport(()))


def test_a_runs_folder_is_diagnosed_with_its_updates(tmp_path: Path) -> None:
    train(small(tmp_path, update="bf16", lr=1e-5, baseline=False), say=quiet)
    alone = diagnose(tmp_path / "run")
    assert {f.symptom for f in alone.findings} == {"updates lost"} and alone.findings[0].layer
    train(small(tmp_path / "b", update="bf16", lr=1e-5, baseline=False, monitor=2), say=quiet)
    both = diagnose(tmp_path / "b" / "run")
    assert "updates lost" in both.rules and "clipped" in both.rules
    assert {f.symptom for f in alone.findings} <= {f.symptom for f in both.findings}
    assert main(["diagnose", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("update", ["gradient: e5m2\n", "bf16"])
@pytest.mark.parametrize("monitor", [None, 2])
def test_a_run_ends_with_its_result_whatever_its_update_counts(
    update: str, monitor: int | None, tmp_path: Path
) -> None:
    """Of gradients alone nothing is counted."""
    result = train(small(tmp_path, update=update, monitor=monitor), say=quiet)
    assert "accuracy gap" in str(result)
    counted = update == "bf16"
    assert (result.verdict is not None) == (counted or monitor is not None)
    assert result.verdict is None or ("updates lost" in result.verdict.rules) == counted


def test_a_run_ends_with_what_its_updates_lost_and_noise_is_said_to_be_made_up_for(
    tmp_path: Path,
) -> None:
    result = train(small(tmp_path, recipe="fp32", update="bf16", lr=1e-5), say=quiet)
    assert result.monitor is None and "updates lost: updates below half a step" in str(result)
    gradients = [[1.0, 2.0, -1.0, 0.5]] * 5
    noisy = str(small_steps(Update(weight="bf16", rounding="stochastic"), gradients).report())
    assert "weight: weight*" in noisy and "* rounded stochastically: what is lost" in noisy
    assert "*" not in str(small_steps(Update(weight="bf16"), gradients).report())
