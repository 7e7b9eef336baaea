"""The confirmation's arms can be trained, its runs are kept, its table says what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.confirm import table
from experiments.confirm.claims import CLAIMS
from experiments.confirm.results import merged, stored
from experiments.confirm.studies import STUDIES
from qtrain import StudyRun
from qtrain.data.dataset import tensor_data_set
from qtrain.data.transforms import Augmentation
from qtrain.training.study.planned import planned
from qtrain.training.train import build_branches


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_takes_a_step(name: str) -> None:
    own = STUDIES[name]
    assert {claim.arm for claim in CLAIMS if claim.study == name} <= set(own.arms)
    config = {**own.config, **({} if own.data == "digits" else {"data_dir": "nowhere"})}
    plan = planned(own.model, own.arms, data=own.data, config=config, seeds=1)
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (8, 3, 16, 16), dtype=np.uint8))
    part = images, torch.arange(8) % 2
    dataset = tensor_data_set("x", part, part, classes=("a", "b"), augmentation=Augmentation())
    for arm in plan.arms:
        branch = build_branches(arm.config, dataset, torch.device("cpu"), arm.model)[-1]
        inputs, targets = dataset.train.read(np.arange(4), seed=0, epoch=0, augment=False)
        assert branch.step(inputs, targets, step=0, rate=0.01)["loss"] > 0, arm.name


def runs(arm: str, values: list[float]) -> list[StudyRun]:
    return [
        StudyRun(arm=arm, seed=i, state="finished", accuracy=value, path="somewhere")
        for i, value in enumerate(values)
    ]


def test_runs_are_merged_one_by_one_and_judged_together(tmp_path: Path) -> None:
    arms = {"fp32": [0.9, 0.902, 0.898], "int8": [0.901, 0.9, 0.899]}
    merged("int8", [run for arm, values in arms.items() for run in runs(arm, values)], tmp_path)
    again = [StudyRun(arm="int8", seed=0, state="finished", accuracy=0.1)]
    merged("int8", [*again, StudyRun(arm="int8", seed=7, state="unfinished")], tmp_path)
    kept = stored("int8", tmp_path)
    assert [(run.arm, run.seed) for run in kept] == [
        (arm, seed) for seed in range(3) for arm in ("fp32", "int8")
    ]
    assert {run.accuracy for run in kept} == {0.9, 0.902, 0.898, 0.901, 0.899}
    assert {run.path for run in kept} == {""}
    merged("deviations", [*runs("l2", [0.9, 0.91]), *runs("linf", [0.5, 0.51])], tmp_path)
    found = table.comparisons(tmp_path)
    claims = {claim.name: claim for claim in CLAIMS}
    assert set(found) == {"P8", "P5 linf"}
    assert table.verdict(claims["P8"], found["P8"]) == "equal within 0.005: as claimed"
    assert table.verdict(claims["P5 linf"], found["P5 linf"]) == "same direction"
    text = table.text(tmp_path)
    assert "90.00 against 90.00 %, n = 3" in text and text.count("not run yet") == len(CLAIMS) - 2
