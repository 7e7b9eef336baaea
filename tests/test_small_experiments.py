"""The small studies' arms can be trained; their command keeps runs; READMEs hold what those say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import small_tasks
from experiments.readme import BEGIN, END, held
from qtrain import StudyRun, read_runs, save_runs
from qtrain.training.given import dataset
from qtrain.training.study.planned import planned
from qtrain.training.train import build_branches

EXPERIMENTS = {
    name: importlib.import_module(f"experiments.{name}.accuracy")
    for name in ("recipes", "updates", "learned", "accumulators", "coverage")
}
#: but for those of named recipes, which have steps of their own in tests/qtrain
STUDIES = [
    (name, study)
    for name, module in EXPERIMENTS.items()
    for study in module.STUDIES
    if name != "recipes"
]


@pytest.mark.parametrize(("name", "study"), STUDIES)
@pytest.mark.filterwarnings("ignore:accumulator")
def test_every_arm_takes_a_step(name: str, study: str, tmp_path: Path) -> None:
    own = dict(EXPERIMENTS[name].STUDIES[study])
    if "data" in own:
        (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
        own["config"] = {**own["config"], "data_dir": str(tmp_path)}
    plan = planned(**own)
    samples = dataset.load(plan.arms[0].config, None).train
    inputs, targets = samples.read(np.arange(2), seed=0, epoch=0, augment=False)
    for arm in plan.arms:
        data = dataset.load(arm.config, None)
        branch = build_branches(arm.config, data, torch.device("cpu"), arm.model)[-1]
        assert branch.step(inputs, targets, step=0, rate=0.01)["loss"] > 0, arm.name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_table_is_what_the_kept_runs_say(name: str) -> None:
    module: Any = EXPERIMENTS[name]
    folder = Path(module.__file__).parent
    more = getattr(module, "MORE", None)
    assert held(folder / "README.md") == small_tasks.tables(
        module.STUDIES, folder / "results", more
    )
    for study, own in module.STUDIES.items():
        if (path := folder / "results" / f"{study}.json").exists():
            runs = read_runs(path)
            wanted = {(arm, seed) for arm in own["recipes"] for seed in range(own["seeds"])}
            assert {(run.arm, run.seed) for run in runs} <= wanted
            assert {run.path for run in runs} == {""}


def test_a_passage_is_the_beginning_of_both_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("abcdefghij" * 400)
    monkeypatch.setattr(small_tasks, "TRAIN", 200)
    monkeypatch.setattr(small_tasks, "TEST", 100)
    found = small_tasks.passage(str(tmp_path))
    assert [len(part.tokens) for part in (found.train, found.test)] == [200, 100]
    assert found.train.tokens[:10].tolist() == list(range(10))


def test_the_command_keeps_runs_and_writes_their_table(tmp_path: Path) -> None:
    script, readme = tmp_path / "own" / "accuracy.py", tmp_path / "own" / "README.md"
    script.parent.mkdir()
    readme.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    arms = {"fp32": "fp32", "slow": {"recipe": "fp32", "lr": 0.01}}
    config = {"epochs": 1, "batch_size": 256, "threads": 1}
    own = {"model": "mlp", "recipes": arms, "seeds": 2, "margin": 0.5, "config": config}
    studies, more = {"digits": own}, (["cost"], lambda study, arm: [f"{study} {arm}"])
    small_tasks.main(studies, str(script), more=more, arguments=["--runs-dir", str(tmp_path)])
    results = script.parent / "results"
    assert (results / "digits.svg").read_text().startswith("<?xml")
    runs = read_runs(results / "digits.json")
    assert [(run.arm, run.seed) for run in runs] == [(a, s) for s in range(2) for a in arms]
    assert {run.path for run in runs} == {""}
    first = held(readme)
    assert "equal within 0.5" in first and "| digits slow" in first and "stale" not in first
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith("\nafter\n")
    readme.write_text(f"{BEGIN}{END}")
    small_tasks.main(studies, str(script), more=more, arguments=["--table"])
    assert held(readme) == first
    with pytest.raises(SystemExit):
        small_tasks.main(studies, str(script), arguments=["other"])
    save_runs([run for run in runs if run.arm == "fp32" or run.seed], results / "digits.json")
    few = small_tasks.tables({**studies, "text": own}, results)
    assert few.endswith("text: not run yet.")
    assert "minus fp32" in few and "equal" not in few  # one run of slow compares with nothing


def test_a_diverged_run_is_told_and_counts_as_chance(tmp_path: Path) -> None:
    own = {
        "recipes": {"fp32": "fp32", "few": "int8"}, "margin": 0.02, "metric": "loss",
        "config": {"epochs": 1},
    }  # fmt: skip
    save_runs(
        [
            StudyRun(arm=arm, seed=seed, state=state, accuracy=0.1, loss=loss)
            for arm, seed, state, loss in (
                ("fp32", 0, "finished", 1.0), ("few", 0, "finished", 1.1),
                ("fp32", 1, "finished", 1.01), ("few", 1, "diverged", 2.3),
            )
        ],
        tmp_path / "text.json",
    )  # fmt: skip
    found = small_tasks.tables({"text": own}, tmp_path)
    assert "| few    | 1.7000 | 2, 1 diverged |" in found and "too little power" in found
    assert "[-6.9290, +8.3190]" in found  # by its own deviation: Welch, Student's t of 1
