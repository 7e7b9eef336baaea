"""The confirmation's arms can be trained, its runs are kept, its table says what they say."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiments.confirm import angle, bits, decay, half, table
from experiments.confirm.__main__ import place
from experiments.confirm.claims import CLAIMS
from experiments.confirm.results import merged, stored
from experiments.confirm.studies import STUDIES
from qtrain import Hook, StudyResult, StudyRun, TrainConfig, data, models, recipes, study
from qtrain.data.dataset import tensor_data_set
from qtrain.data.transforms import Augmentation
from qtrain.training.given.hooks import made
from qtrain.training.study.planned import planned
from qtrain.training.train import build_branches
from quantizers import stochastic


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_takes_a_step(name: str, tmp_path: Path) -> None:
    own = STUDIES[name]
    claims = [claim for claim in CLAIMS if claim.study == name]
    assert {arm for claim in claims for arm in (claim.arm, claim.other)} <= set(own.arms) and claims
    here = argparse.Namespace(data_dir="nowhere", text_dir="nowhere", cache_dir=None)
    config = {**own.config, **(place(own, here) or {})}
    plan = planned(own.model, own.arms, data=own.data, config=config, seeds=1, metric=own.metric)
    if "context" in config:
        (tmp_path / "text.txt").write_text("to be, or not to be: " * 40)
        dataset = data.load("text", data_dir=str(tmp_path), context=8)
    else:
        generator = np.random.default_rng(0)
        images = torch.from_numpy(generator.integers(0, 256, (8, 3, 16, 16), dtype=np.uint8))
        part = images, torch.arange(8) % 2
        dataset = tensor_data_set("x", part, part, classes=("a", "b"), augmentation=Augmentation())
    for arm in plan.arms:
        assert all(isinstance(hook, Hook) for hook in made(arm.config, []))
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


TINY: dict[str, Any] = {"epochs": 3, "milestones": [2], "batch_size": 256, "device": "cpu"}


def of_decay(folder: Path, *arms: str) -> StudyResult:
    own = STUDIES["weight decay small"]
    config: dict[str, Any] = {**own.config, **TINY}
    chosen = {arm: own.arms[arm] for arm in arms}
    return study(
        own.model, chosen, data="digits", config=config, seeds=[6], runs_dir=str(folder), name="d",
        say=lambda text: None,
    )  # fmt: skip


def test_the_arms_of_weight_decay_follow_the_norms_of_the_first(tmp_path: Path) -> None:
    alone = of_decay(tmp_path / "alone", "off", "correction")
    assert [run.state for run in alone.runs] == ["finished", "failed"]
    assert "the norms of the arm 'on' of seed 6 are not there" in alone.runs[1].note
    found = of_decay(tmp_path, *STUDIES["weight decay small"].arms)
    rates = {run.arm: run.value("effective_rate") for run in found.runs}
    assert rates["correction"] == pytest.approx(rates["on"], rel=1e-4)  # what eq. 4 is for
    # sqrt(10) times the norms at ten times the rate: the same again
    assert rates["norms"] == pytest.approx(rates["on"], rel=1e-4)
    assert rates["off"] < 0.999 * rates["on"]


def test_a_part_of_cifar_holds_as_many_images_of_each_class(
    folder: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decay, "IMAGES", 3)
    found = decay.part(folder(8))
    assert found.train.truth.tolist() == [0, 1, 2] and len(found.test) == 3


def test_the_cosines_of_a_run_are_columns(tmp_path: Path) -> None:
    arms = {"4 bits": bits.of_bits(4), "8 bits": bits.of_bits(8)}
    config = {"epochs": 1, "batch_size": 512, "threads": 1, "device": "cpu"}
    found = study(
        "mlp", arms, config=config, seeds=1, runs_dir=str(tmp_path), metric="cosine_backward",
        say=lambda text: None,
    )  # fmt: skip
    four, eight = (dict(run.columns) for run in found.runs)
    assert four["cosine_backward"] < eight["cosine_backward"] < 1
    assert four["cosine_forward"] < eight["cosine_forward"] < 1


def test_each_part_of_the_recipe_is_what_its_arm_says() -> None:
    for width in (8, 4):
        for what in ("whole", "narrow", "nearest"):
            own = STUDIES["bifurcation"].arms[f"{width} bits {what}"]
            layer, wide = (own.slot(kind, "grad_output") for kind in ("grad_input", "grad_weight"))
            assert layer.format.bits == width
            assert (layer.rounding == stochastic()) is not (what == "nearest")
            assert (wide == layer) is (what == "narrow")
    whole = STUDIES["bifurcation"].arms["8 bits whole"]
    assert whole.slot("grad_input", "grad_output") == recipes.banner2018().slot(
        "grad_input", "grad_output"
    )


def test_scaled_convolutions_train_as_others_do_in_exact_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(half.models, "get", lambda name, **_: models.resnet20(num_classes=2))
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8, generator=draw), torch.arange(4) % 2
    config = TrainConfig(recipe="fp32", baseline=False, lr=0.1)
    outputs = []
    for k in (0, 4):
        torch.manual_seed(0)
        net = half.network(2, 3, 8, k=k, deviation="l2").double()
        optimizer = half.groups(net, config, k=k)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.double()), labels).backward()
            optimizer.step()
        outputs.append(net(images.double()))
    assert torch.allclose(*outputs, rtol=1e-6, atol=1e-9)


def test_the_theory_is_the_papers() -> None:
    # 2^4 / (2^4 + sqrt(ln 10^6) / sqrt 6), and 1 / sqrt(1 + ln 10^6 / (6 * 256))
    assert angle.bound(4, 10**6) == pytest.approx(16 / (16 + 3.71692 / 2.44949), rel=1e-5)
    assert angle.tight(4, 10**6) == pytest.approx(1 / math.sqrt(1 + 13.81551 / 1536), rel=1e-6)


def test_gaussian_vectors_lie_above_the_bound_and_near_the_tight_form() -> None:
    found = angle.means([rows[:20] for rows in angle.gaussians(0)[:-1]])
    for bound, cosine, tight in zip(found["bound"], found["cosine"], found["tight"], strict=True):
        assert bound < cosine < 1
        assert cosine == pytest.approx(tight, abs=0.03)
    assert angle.cosine(torch.tensor([1.0, -0.5, 0.25]), 2) == pytest.approx(1)  # on the grid
    assert angle.cosine(torch.tensor([1.0, 0.2]), 1) == pytest.approx(1 / math.sqrt(1.04))


def test_the_tensors_are_the_layers_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    x, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    found = angle.tensors(net, x, labels)
    assert [len(own) for own in found.values()] == [2, 2, 2]
    hidden = net[1](x.flatten(1))
    last = (net[3](hidden.relu()).softmax(1) - nn.functional.one_hot(labels, 3)) / 5
    assert torch.allclose(found["gradients"][0], last.reshape(1, -1))
    first = (last @ net.get_submodule("3").get_parameter("weight")) * (hidden > 0)
    assert torch.allclose(found["gradients"][1], first.reshape(1, -1))
    assert torch.equal(found["inputs"][0], x.reshape(1, -1))


def normed(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, num_classes)
    )


def test_the_angles_of_a_trained_network_are_kept(tmp_path: Path) -> None:
    words = ["--data", "digits", "--model", f"{__file__}:normed", "--epochs", "1", "--seeds", "1"]
    angle.main([*words, "--runs-dir", str(tmp_path / "runs"), "--output", str(tmp_path)])
    (run,) = json.loads((tmp_path / "angle.json").read_text())["runs"]
    assert all(len(run[kind]["cosine"]) == 8 for kind in ("weights", "inputs", "gradients"))
    assert run["weights"]["cosine"] == sorted(run["weights"]["cosine"])
