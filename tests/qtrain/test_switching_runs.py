"""qtrain train with recipes that switch during the run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_cases import Forked, assert_same_run, lines, quiet, small, states

from qtrain import CheckpointError, TrainConfig, compare, inspect, training_recipe
from qtrain.cli import main
from qtrain.training.page import render
from qtrain.training.record import read_run
from qtrain.training.train import restored, train

SWITCH = ("0.4:bf16", "0.7:int8")


def test_a_run_switches_where_it_says(tmp_path: Path) -> None:
    train(small(tmp_path / "plain", baseline=False), say=quiet)
    result = train(small(tmp_path, baseline=False, switch=("4:bf16",), monitor=1), say=quiet)
    assert result.monitor is not None
    formats = {row.step for row in result.monitor.rows if row.role == "grad_output (grad_input)"}
    assert formats == set(range(10))
    input_ = [row.sqnr_db for row in result.monitor.rows if row.role == "weight"]
    eight, sixteen = input_[: 4 * 3], input_[4 * 3 :]
    assert max(eight) < 47 < 49 < min(sixteen)  # int8 against bf16
    before, after = (lines(tmp_path / name / "metrics.jsonl") for name in ("plain/run", "run"))
    assert before[0] == after[0] and before[-1] != after[-1]
    assert "int8, bf16 from 4" in str(result)
    assert "numeric error of each layer on one training batch, under bf16 (more" in str(result)
    switches = [
        line for line in lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "recipe"
    ]
    assert [(line["step"], line["recipe"][:5]) for line in switches] == [(4, "bf16:")]


def test_what_is_off_at_the_end_is_the_plain_model(tmp_path: Path) -> None:
    result = train(small(tmp_path, baseline=False, switch=("0.5:fp32",)), say=quiet)
    assert result.report is None
    model = result.models["quantized"]
    assert all(p.recipe.products_off for p in model.modules() if hasattr(p, "noise_key"))


@pytest.mark.parametrize("stop", (3, 4, 6, 7, 10))
def test_a_run_resumes_across_its_switches(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtrain.training import run

    whole = tmp_path / "whole"
    train(small(whole, switch=SWITCH, checkpoint_every=1), say=quiet)
    monkeypatch.setattr(run.Run, "train", _stopped(run.Run.train, stop))
    with pytest.raises(InterruptedError):
        train(small(tmp_path, switch=SWITCH, checkpoint_every=1), say=quiet)
    monkeypatch.undo()
    train(small(tmp_path, switch=SWITCH, checkpoint_every=1, resume=True), say=quiet)
    assert_same_run(whole / "run", tmp_path / "run")


def _stopped(real: object, stop: int) -> object:
    """A run that stops dead after so many steps, each of which wrote a checkpoint."""

    def stopped(self: object, request: object) -> None:
        save = self.save  # type: ignore[attr-defined]

        def saved() -> None:
            save()
            if self.done == stop:  # type: ignore[attr-defined]
                raise InterruptedError

        self.save = saved  # type: ignore[attr-defined]
        real(self, request)  # type: ignore[operator]

    return stopped


KILLED = """
import os, signal, sys
from qtrain.training import trainee
real, count = trainee.Branch.step, 0
def step(self, *args, **options):
    global count
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **options)
trainee.Branch.step = step
from qtrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    command = shlex.split(
        "train int8 --switch 0.4:bf16 0.7:int8 --model mlp --epochs 2 --batch-size 256 --threads 1 "
        "--device cpu --checkpoint-every 1 --no-baseline --name run --runs-dir"
    )
    assert main([*command, str(tmp_path / "whole")]) == 0
    process = Forked(KILLED, *command, str(tmp_path / "killed"))
    process.communicate(timeout=200)
    assert process.returncode == -9
    assert main([*command, str(tmp_path / "killed"), "--resume"]) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "killed" / "run")


def test_a_checkpoint_comes_back_under_its_recipe(tmp_path: Path) -> None:
    for switch, name, ranged in (("1:bf16", "bf16", False), ("0.9:int8", "int8", True)):
        config = small(tmp_path, recipe="int8" if name == "bf16" else "bf16", switch=(switch,))
        train(replace(config, overwrite=True), say=quiet)
        with restored(tmp_path / "run" / "checkpoint.pt") as (model, inputs, targets):
            products = [m for m in model.modules() if hasattr(m, "noise_key")]
            assert {p.recipe.name for p in products} == {name}
            assert bool(inspect(model, inputs, targets).rows)
        kept = states(tmp_path / "run" / "checkpoint.pt")
        assert any("input_high" in path for path in kept) == ranged


def test_the_folder_the_page_and_the_result_name_the_switch(tmp_path: Path) -> None:
    config = small(tmp_path, switch=("0.4:bf16",), name=None)
    assert config.run_name == "int8-bf16@0.4-mlp-digits-seed0"
    result = train(config, say=quiet)
    folder = tmp_path / config.run_name
    assert json.loads((folder / "config.json").read_text())["switch"] == ["0.4:bf16"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["recipe"].startswith("int8:") and list(summary["switches"]) == ["0.4"]
    assert summary["switches"]["0.4"].startswith("bf16: input bf16")
    assert "int8, bf16 from 0.4" in (folder / "report.txt").read_text()
    text = render(read_run(folder))
    assert "recipe <b>int8, bf16 from 0.4</b>" in text
    assert "Recipe int8" in text and "Recipe bf16, from 0.4" in text
    assert result.summary()["switches"] == summary["switches"]
    without = train(small(tmp_path, name="none", baseline=False), say=quiet)
    assert "switches" not in without.summary()
    assert compare(folder, tmp_path / "none").settings["switch"] == (["0.4:bf16"], [])


def test_another_switch_is_another_run(tmp_path: Path) -> None:
    train(small(tmp_path, switch=("0.4:bf16",), baseline=False), say=quiet)
    with pytest.raises(ValueError, match=r"another switch \(stored \['0.4:bf16'\], now \[\]\)"):
        train(small(tmp_path, baseline=False, resume=True), say=quiet)


def test_a_checkpoint_of_a_version_without_switches_resumes(tmp_path: Path) -> None:
    first = train(small(tmp_path, baseline=False), say=quiet)
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["config"]["switch"]
    torch.save(content, path)
    again = train(small(tmp_path, baseline=False, resume=True), say=quiet)
    assert again.accuracy == first.accuracy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"switch": ("bf16",)}, "switch: got 'bf16', need when and the name of a recipe, 0.9:bf16"),
        ({"switch": ("0.5",)}, "switch: got '0.5', need when and the name of a recipe"),
        ({"switch": "0.5:bf16"}, "switch: got '0.5:bf16', need a tuple such as"),
        ({"switch": (3,)}, "switch: got 3, need a string"),
        ({"switch": ("0.5:bf61",)}, "unknown recipe 'bf61'; did you mean 'bf16'"),
        ({"switch": ("1.5:bf16",)}, "a fraction from 0, below 1"),
        ({"switch": ("0:bf16",)}, "need a time of its own, not 0, for each"),
        ({"switch": ("5:bf16", "5:int8")}, "need a time of its own, not 0, for each"),
        ({"switch": ("0.5:bf16", "5:int8")}, "not both"),
        ({"recipe": "fp32", "switch": ("0.5:int8",), "monitor": 1}, "'fp32' quantizes no product"),
    ],
)
def test_what_is_no_switch_is_refused(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        small(tmp_path, **changes)


def test_a_switch_that_never_comes_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in a run of 10 steps none is under bf16"):
        train(small(tmp_path, switch=("10:bf16",)), say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_named_run_and_the_shell_take_switches(tmp_path: Path) -> None:
    config = training_recipe("int8-resnet18", switch=("0.9:bf16",))
    assert [recipe.activation.name for _, recipe in config.quantizations().items()] == ["fp16"] * 2  # type: ignore[union-attr]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert main(["train", "int8", "--switch", "nine:bf16", "--runs-dir", str(tmp_path)]) == 2


def test_a_damaged_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(small(tmp_path, switch=("0.5:bf16",), baseline=False), say=quiet)
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["config"]["switch"] = []
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"product\.forward_input_low is missing"):
        with restored(path):
            pass


@pytest.mark.parametrize(
    "command", ["train int4", "train int8 --switch 0.5:int4", "train fp32 --switch 0.5:int4"]
)
def test_the_shell_says_how_a_width_is_given(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert "did you mean 'int8' at 4 bits?" in capsys.readouterr().err
