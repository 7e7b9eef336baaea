"""The experiments on "Scalable methods for 8-bit training": what they measure is what they say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiments.banner2018 import (
    angle,
    bifurcation,
    bits,
    cifar_resnet,
    claims,
    int8_resnet,
    run_all,
    transformer,
)
from experiments.harness import images, text
from experiments.harness.claims import BEGIN, END
from experiments.harness.experiment import Job
from experiments.harness.loop import Curve
from qtrain import Recipe, data, models, quantize, recipes
from qtrain.layers.attention import QScaledDotProductAttention
from quantizers import stochastic

ROOT = Path(__file__).parents[1]


def job(arm: str, experiment: Any, tmp_path: Path, **changes: Any) -> Job:
    """A run on digits, or on the text at tmp_path."""
    args = Namespace(data="digits", data_dir=None, cache_dir=None, workers=0, device="cpu")
    if experiment is transformer:
        path = tmp_path / "words.txt"
        path.write_text("to be or not to be, that is the question. " * 40)
        args = Namespace(data="text", data_dir=str(path), device="cpu")
    setting = replace(experiment.EXPERIMENT.settings["here"], **changes)
    return Job(arm=arm, seed=0, setting=setting, args=args, kept=tmp_path / "kept.pt")


def cosine(x: Any, y: Any) -> float:
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def test_the_forward_cosine_is_that_of_weights_and_inputs_in_so_many_bits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, labels = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    found = bits.cosines(quantize(net, recipe=bits.recipe(4)), (x, labels))
    weight = net.get_submodule("1").get_parameter("weight").detach().double().numpy()
    # affine in 16 levels, 0 one of them, from the extremes
    step = (weight.max() - weight.min()) / 15
    zero = np.round(-weight.min() / step)
    rounded = (np.clip(np.round(weight / step) + zero, 0, 15) - zero) * step
    assert found["1"]["weight"] == pytest.approx(cosine(weight, rounded), abs=1e-4)
    assert found.keys() == {"1"} and found["1"].keys() == {"input", "weight"}


def test_the_two_figures_are_means_over_layers_and_operands() -> None:
    gradient = "grad_output (grad_input)"
    layers = {"a": {"input": 0.5, "weight": 0.7}, "b": {"input": 0.9, "weight": 1.0, gradient: 0.2},
              "c": {"input": 1.0, "weight": 1.0, gradient: 0.4}}  # fmt: skip
    found = bits.means(layers)
    assert found["cosine_forward"] == pytest.approx((0.5 + 0.7 + 0.9 + 1 + 1 + 1) / 6)
    assert found["cosine_backward"] == pytest.approx(0.3)


def test_cosines_are_of_every_epoch_and_fall_with_the_bits(tmp_path: Path) -> None:
    # 8 channels: of fewer, torch's own gradient of a strided 1x1 kernel may kill the process
    changes = {"width": 8, "images": 100, "epochs": 2, "batch": 20, "milestones": (), "rate": 0.01}
    few, many = (bits.run(job(f"{b} bits", bits, tmp_path, **changes)) for b in (3, 8))
    for column in bits.COLUMNS:
        for less, more in zip(few.epochs, many.epochs, strict=True):
            assert 0 < less[column] < more[column] < 1
    assert many.more is not None and "grad_output (grad_input)" not in many.more["cosines"]["conv1"]
    exact = bits.run(job("fp32 range", bits, tmp_path, **changes))
    assert exact.more is None and exact.epochs[-1].keys() == {"epoch", "train_loss", "accuracy"}


def test_the_theory_is_the_papers() -> None:
    # 2^4 / (2^4 + sqrt(ln 10^6) / sqrt 6), and 1 / sqrt(1 + ln 10^6 / (6 * 256))
    assert angle.bound(4, 10**6) == pytest.approx(16 / (16 + 3.71692 / 2.44949), rel=1e-5)
    assert angle.tight(4, 10**6) == pytest.approx(1 / math.sqrt(1 + 13.81551 / 1536), rel=1e-6)


def test_gaussian_vectors_lie_above_the_bound_and_near_the_tight_form() -> None:
    vectors = [(name, x[:20]) for name, x in angle.gaussians(0) if name != "1000000"]
    (row,) = angle.curve(vectors).epochs
    for width in angle.WIDTHS:
        assert row[f"bound {width}"] < row[f"cosine {width}"] < 1
        assert row[f"cosine {width}"] == pytest.approx(row[f"tight {width}"], abs=0.03)
    assert angle.cosine(torch.tensor([1.0, -0.5, 0.25]), 2) == pytest.approx(1)  # on the grid
    assert angle.cosine(torch.tensor([1.0, 0.2]), 1) == pytest.approx(1 / math.sqrt(1.04))


def test_the_tensors_are_the_layers_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    x, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    found = angle.tensors(net, (x, labels))
    assert {kind: [name for name, _ in own] for kind, own in found.items()} == {
        "weights": ["1", "3"], "inputs": ["1", "3"], "gradients": ["3", "1"],
    }  # fmt: skip
    hidden = net[1](x.flatten(1))
    logits = net[3](hidden.relu())
    last = (logits.softmax(1) - nn.functional.one_hot(labels, 3)) / 5
    assert torch.allclose(found["gradients"][0][1], last)
    first = (last @ net.get_submodule("3").get_parameter("weight")) * (hidden > 0)
    assert torch.allclose(found["gradients"][1][1], first)
    assert torch.equal(found["inputs"][0][1], x.flatten(1))


def test_each_ablation_changes_what_it_says() -> None:
    whole = bifurcation.RECIPES["whole"]

    def gradients(recipe: Recipe) -> tuple[Any, Any]:
        return tuple(recipe.slot(kind, "grad_output") for kind in ("grad_input", "grad_weight"))

    assert gradients(whole)[0] == gradients(recipes.banner2018())[0]
    assert gradients(whole)[1] == gradients(recipes.banner2018(variant="code"))[1]
    for width, name in ((8, ""), (4, "4 bits")):
        for narrow in (False, True):
            for nearest in (False, True):
                words = [name, "narrow" * narrow, "nearest" * nearest]
                arm = ", ".join(word for word in words if word) or "whole"
                if arm == "narrow, nearest":
                    continue
                layer, wide = gradients(bifurcation.RECIPES[arm])
                assert layer.format.bits == width
                assert (layer.rounding == stochastic()) is not nearest
                assert (wide == layer) is narrow
                assert bifurcation.RECIPES[arm].forward == whole.forward
    constants = {
        arm: str(recipe.norm.deviation)
        for arm, recipe in bifurcation.RECIPES.items()
        if recipe.norm is not None and recipe.norm != whole.norm
    }
    assert constants == {
        "paper's constant": "range(chunks=1, paper)", "code's constant": "range(chunks=1, code)",
    }  # fmt: skip


def test_attention_is_in_8_bits_but_where_it_is_left(tmp_path: Path) -> None:
    changes = {"width": 8, "epochs": 1, "batch": 4}
    seen: dict[str, Any] = {}
    for arm in transformer.EXPERIMENT.arms:
        own = job(arm, transformer, tmp_path, **changes)
        model = transformer.network(own, text.load(own))
        kinds = [type(module) for module in model.modules()]
        seen[arm] = (QScaledDotProductAttention in kinds, nn.Linear not in kinds)
        curve = transformer.run(own)
        assert curve.failed is None and curve.epochs[0]["perplexity"] > 1
    assert seen == {"fp32": (False, False), "int8": (True, True), "linear": (False, True)}


def test_perplexity_of_a_model_that_knows_nothing_is_the_alphabet(tmp_path: Path) -> None:
    own = text.load(job("fp32", transformer, tmp_path))
    model = models.CharTransformer(**own.sizes, width=8, depth=1, heads=1)
    nn.init.zeros_(model.fc.weight)
    with torch.no_grad():
        found = transformer.evaluate(model, own)
    assert found["perplexity"] == pytest.approx(own.num_classes, rel=1e-5)
    targets = torch.cat([y for _, y in data.Batches(own.test, batch_size=64, train=False)])
    assert found["accuracy"] == pytest.approx(100 * (targets == 0).double().mean().item())


RANK = """
import json, sys
from argparse import Namespace
from pathlib import Path
import torch
from experiments.harness import images, ranks
from experiments.harness.experiment import Job
from experiments.harness.loop import Setting
from qtrain import models, quantize

folder = Path(sys.argv[1])
torch.set_num_threads(1)
args = Namespace(data="digits", data_dir=None, cache_dir=None, workers=0, device="cpu")
setting = Setting(network="resnet8", width=4, images=200, epochs=2, batch=40, rate=0.05)
job = Job(arm="", seed=0, setting=setting, args=args, kept=folder)
with ranks.joined("cpu"):
    dataset = images.load(job)
    torch.manual_seed(0)
    found = {}
    for name, model in (
        ("mlp", models.get("mlp", **dataset.sizes)),
        ("int8", quantize(images.resnet(job, dataset), recipe="int8", norm="range")),
    ):
        curve = images.fit(model, dataset, job)
        state = {key: value.tolist() for key, value in model.named_parameters()}
        found[name] = {"epochs": curve.epochs, "failed": curve.failed, "state": state}
    (folder / f"{ranks.rank()}-of-{ranks.count()}.json").write_text(json.dumps(found))
"""


def test_ranks_agree_and_do_together_what_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    threads = torch.get_num_threads()
    exec(RANK, {"__name__": "__main__"})
    torch.set_num_threads(threads)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    alone, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second and first["int8"]["failed"] is None
    # no batch-norm: halves of a batch, averaged, are the batch
    for mine, theirs in zip(alone["mlp"]["epochs"], first["mlp"]["epochs"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_digits_need_no_folder_whatever_the_images_do(tmp_path: Path) -> None:
    own = job("fp32", int8_resnet, tmp_path)
    args = Namespace(**{**vars(own.args), "data": "imagefolder", "data_dir": "x", "cache_dir": "y"})
    digits = images.load(replace(own, args=int8_resnet.on_digits(args), setting=replace(
        own.setting, images=None)))  # fmt: skip
    assert len(digits.train) == 1437


def test_torchrun_refuses_an_experiment_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    with pytest.raises(SystemExit, match="start it with python -m, not torchrun"):
        bits.main(["--data", "digits"])


@pytest.mark.parametrize("script", [int8_resnet, bifurcation, cifar_resnet, bits, angle],
                         ids=lambda script: script.EXPERIMENT.name)  # fmt: skip
def test_the_papers_setting_starts(
    script: Any,
    folder: Callable[[int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms = dict(list(script.EXPERIMENT.arms.items())[-2:])
    small = {
        "arms": arms | ({"weights": ""} if script is angle else {}),
        "reference": next(iter(arms)),
    }
    monkeypatch.setattr(script, "EXPERIMENT", replace(script.EXPERIMENT, **small))
    script.main(
        ["--scale", "paper", "--data-dir", folder(72), "--seeds", "1", "--epochs", "1", "--batch",
         "4", "--network", "resnet8", "--output", str(tmp_path)]
    )  # fmt: skip
    name = script.EXPERIMENT.name
    result = json.loads((tmp_path / f"{name}-paper.json").read_text())
    assert [run["failed"] for run in result["runs"]] == [None] * len(small["arms"])
    assert (tmp_path / f"{name}-paper.svg").exists()
    assert not (tmp_path / "int8_digits-paper.json").exists()


def made(job: Job) -> Curve:
    """A run's numbers without the run, a little different for each seed."""
    generator = torch.Generator().manual_seed(job.seed)
    found = angle.curve([("fc", torch.randn(100, generator=generator))])
    layers = {"fc": {"input": 0.9, "grad_output (grad_input)": 0.5 + job.seed / 10}}
    row = {"accuracy": 50 + job.seed, "perplexity": 5 + job.seed / 10, "train_loss": 1.0}
    return replace(found, epochs=[found.epochs[0] | row | bits.means(layers)])


def test_one_command_runs_all_and_every_claim_names_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    monkeypatch.setattr(claims, "README", readme)
    scripts = (*run_all.ON_IMAGES, transformer)
    for script in scripts:
        for name in ("EXPERIMENT", "DIGITS"):
            if hasattr(script, name):
                own = getattr(script, name)
                monkeypatch.setattr(script, name, replace(own, run=made, needs=None))
    run_all.main(["--data", "digits", "--epochs", "1", "--seeds", "2", "--output", str(tmp_path),
                  "--text-dir", "text"])  # fmt: skip
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}") and "stale" not in text and "not run" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(claims.CLAIMS) and all("n = 2" in row for row in rows)
    names = {script.EXPERIMENT.name for script in scripts} | {"int8_digits"}
    assert {path.stem for path in tmp_path.glob("*.svg")} == {f"{name}-here" for name in names}
