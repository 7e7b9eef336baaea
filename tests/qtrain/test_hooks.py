"""Hooks, optimizers by reference and scaled losses: honoured, resumed bit for bit, or refused."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import assert_same_run, lines, quiet, small, states

from qtrain import CheckpointError, Hook, NonFiniteError, study, train
from qtrain.training.attached import _TAKEN
from qtrain.training.config import TrainConfig
from qtrain.training.metrics import EPOCH, STEP_NUMBERS
from qtrain.training.metrics_table import save_table
from qtrain.training.study.outcome import StudyRow, read_runs
from qtrain.training.trainee import Branch, build_optimizer

THIS = __file__


class Pulls(Hook):
    """Pulls the last layer's bias towards its mean over the epochs: state that training feels."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.mean: torch.Tensor | None = None
        self.calls: list[str] = []
        self.share = math.nan

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        self.bias = [p for name, p in model.named_parameters() if name.endswith("bias")][-1]
        self.mean = torch.zeros_like(self.bias)
        self.calls.append("begin")
        optimizer.register_step_post_hook(self.pull)

    def pull(self, *_: Any) -> None:
        assert self.mean is not None
        with torch.no_grad():
            self.bias.lerp_(self.mean, self.share)

    def before_epoch(self, epoch: int) -> None:
        self.calls.append(f"before {epoch}")
        self.share = 0.1 / (epoch + 1)

    def after_epoch(self, epoch: int) -> Mapping[str, float]:
        self.calls.append(f"after {epoch}")
        if self.stop == epoch:
            raise RuntimeError("stopped")
        assert self.mean is not None
        self.mean = (self.mean + self.bias.detach() + torch.rand(10) / 100) / 2
        return {"pulled": float(self.mean.norm())}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def decaying(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Half the rate for biases; the first weight's stays."""
    first, *rest = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim < 2], "lr": config.lr / 2},
        {"params": [first], "constant": True, "lr": 0.003},
        {"params": rest},
    ]
    return torch.optim.Adam(groups, lr=config.lr)


def plain(config: TrainConfig) -> Hook:
    return Pulls()


def none() -> Hook:
    return None  # type: ignore[return-value]


def no_optimizer(model: nn.Module, config: TrainConfig) -> int:
    return 3


def stranger(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)


class Counting(torch.optim.AdamW):
    """Counts in its settings, as schedule-free ones do; keeps lists and a bf16 state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p, dtype=torch.bfloat16))
                self.state[p]["norms"] = [*self.state[p].get("norms", []), float(p.norm())][-2:]
                p.sub_(mean.mul_(0.9).add_(p, alpha=0.1), alpha=1e-3 / group["k"])
                p.mul_(1 + 1e-6 * len(self.state[p]["norms"]))


def counting(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [
        {"params": [first], "lr": 0, "constant": True}, {"params": rest},
    ]  # fmt: skip
    return Counting(groups, lr=config.lr, amsgrad=True)


def of_numpy(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=np.float32(0.1))  # type: ignore[arg-type]


class Decays(Hook):
    """Sets an optimizer's settings once: a decay by NumPy, and in the first epoch the rate."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        self.groups = optimizer.param_groups

    def before_epoch(self, epoch: int) -> None:
        for group in self.groups:
            group["weight_decay"] = np.float64(0.01) * (epoch + 1)
            if epoch == 0 and "constant" not in group:
                group["lr"] *= 0.5


def decays() -> Hook:
    return Decays()


HOOKED: dict[str, Any] = {
    "hooks": (f"{THIS}:plain",), "optimizer": f"{THIS}:decaying", "loss_scale": 1024.0,
    "checkpoint_every": 3,
}  # fmt: skip


@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_with_state_of_its_own_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole, kept = small(tmp_path, name="whole", **HOOKED), small(tmp_path, name="kept", **HOOKED)
    train(whole, say=quiet)
    hook = Pulls(stop)
    own = replace(kept, hooks=())
    with pytest.raises(RuntimeError, match="stopped"):
        train(own, hooks=[hook], say=quiet)
    with pytest.raises(ValueError, match=r"hooks \(stored \['given:Pulls'\], now"):
        train(replace(kept, resume=True), say=quiet)
    again = Pulls()
    train(replace(own, resume=True), hooks=[again], say=quiet)  # from within an epoch
    assert_same_run(tmp_path / "whole", tmp_path / "kept")
    whole_epochs = ["before 0", "after 0", "before 1", "after 1"]
    assert again.calls == ["begin", *whole_epochs[2 * stop :]]
    rows = [line for line in lines(tmp_path / "kept" / "metrics.jsonl") if line["kind"] == "epoch"]
    assert ["pulled" in row for row in rows] == [False, True, False, True]  # no baseline's
    save_table(tmp_path / "kept" / "metrics.jsonl", tmp_path / "table.csv")
    assert "pulled" in (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    again.load_state_dict = None  # type: ignore[assignment, method-assign]
    with pytest.raises(CheckpointError, match="not the state of hook given:Pulls"):
        train(replace(own, resume=True), hooks=[again], say=quiet)


@pytest.mark.parametrize("optimizer", ["sgd", f"{THIS}:counting"])
def test_settings_that_change_and_states_of_any_kind_go_on(tmp_path: Path, optimizer: str) -> None:
    settings: dict[str, Any] = {
        "recipe": "fp32", "baseline": False, "checkpoint_every": 1, "optimizer": optimizer,
    }  # fmt: skip
    train(small(tmp_path, name="whole", hooks=(f"{THIS}:decays",), **settings), say=quiet)
    kept = small(tmp_path, name="kept", hooks=(f"{THIS}:decays",), **settings)
    step = Branch.step

    def stops(self: Branch, *args: Any, **named: Any) -> Any:
        if named["step"] == 7:
            raise RuntimeError("stopped")
        return step(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(Branch, "step", stops)
        train(kept, say=quiet)
    train(replace(kept, resume=True), say=quiet)
    assert_same_run(tmp_path / "whole", tmp_path / "kept")


def test_groups_follow_the_schedule_from_rates_of_their_own(tmp_path: Path) -> None:
    config = small(tmp_path, optimizer=f"{THIS}:decaying", lr=0.01, warmup=0.0, baseline=False)
    seen: list[list[float]] = []

    class Watch(Hook):
        def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
            optimizer.register_step_pre_hook(
                lambda own, *_: seen.append([group["lr"] for group in own.param_groups])
            )

    train(config, hooks=[Watch], say=quiet)
    for step, rates in enumerate(seen):
        cosine = 0.5 * (1 + math.cos(math.pi * step / 10))
        assert rates == pytest.approx([0.005 * cosine, 0.003, 0.01 * cosine], rel=1e-12)
    assert len(seen) == 10


def drawing(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=random.random() + np.random.rand())


def test_what_makes_an_optimizer_draws_from_the_runs_seed(tmp_path: Path) -> None:
    config, model = small(tmp_path, optimizer=f"{THIS}:drawing"), nn.Linear(2, 2)
    random.seed(1)
    before = random.getstate()
    one, other = (build_optimizer(model, config) for _ in range(2))
    assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert random.getstate() == before


def test_a_scaled_loss_of_a_power_of_two_changes_no_bit(tmp_path: Path) -> None:
    fp32 = {"recipe": "fp32", "baseline": False, "clip_grad": 0.5}
    for scale in (1.0, 1024.0, 3.0):
        train(small(tmp_path, name=f"{scale:g}", loss_scale=scale, **fp32), say=quiet)
    assert_same_run(tmp_path / "1", tmp_path / "1024")
    one, three = (states(tmp_path / name / "checkpoint.pt") for name in ("1", "3"))
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert all(torch.allclose(one[name], three[name], atol=1e-4) for name in one)
    with pytest.raises(NonFiniteError, match="a lower loss_scale"):
        train(small(tmp_path, name="inf", loss_scale=3e38, **fp32), say=quiet)


def test_a_study_is_judged_by_a_hooks_column(tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 256, "threads": 1, "device": "cpu"}
    arms = {
        "a": {"recipe": "fp32", "hooks": [f"{THIS}:plain"]},
        "b": {"recipe": "fp32", "lr": 0.3, "hooks": [f"{THIS}:plain"]},
        "hot": {"recipe": "fp32", "lr": 1e12, "warmup": 0.0, "hooks": [f"{THIS}:plain"]},
    }
    common: dict[str, Any] = {"runs_dir": str(tmp_path), "name": "s", "say": quiet}
    found = study("mlp", arms, seeds=2, config=settings, metric="pulled", margin=0.5, **common)
    a, b, hot = (found.values(arm) for arm in arms)
    assert set(a) == set(b) == {0, 1} and a != b and hot == {}
    gap = found.differences[0].interval.value
    assert gap == pytest.approx(sum(b.values()) / 2 - sum(a.values()) / 2) and gap != 0
    assert "left out, as chance has no pulled" in " ".join(str(found).split())
    assert read_runs(tmp_path / "s" / "runs.json")[:2] == found.runs[:2]
    with open(tmp_path / "s" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["pulled"] for row in rows[:3]] == [str(a[0]), str(b[0]), "nan"]
    with pytest.raises(ValueError, match=r"metric: got 'pushed', but run a-seed0 has .*pulled"):
        study("mlp", arms, seeds=2, config=settings, metric="pushed", **common)
    with pytest.raises(ValueError, match=r"rates: .*accuracy or loss"):
        study("mlp", arms, metric="pulled", rates=(1, 2), config=settings, **common)
    del arms["a"]["hooks"]
    with pytest.raises(ValueError, match="metric: got 'pulled', need one of accuracy, loss"):
        study("mlp", arms, metric="pulled", config=settings, **common)


class Returns(Hook):
    def __init__(self, columns: Any, state: Any = None) -> None:
        self.columns, self.state = columns, {} if state is None else state

    def after_epoch(self, epoch: int) -> Any:
        return self.columns

    def state_dict(self) -> Any:
        return self.state


def test_columns_are_names_and_numbers_of_any_kind_but_those_of_a_studys_table(
    tmp_path: Path,
) -> None:
    given = {"self": np.float32(0.5), "class": np.int64(3)}
    train(
        small(tmp_path, recipe="fp32", baseline=False, epochs=1), hooks=[Returns(given)], say=quiet
    )
    last = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["self"] == 0.5 and last["class"] == 3
    assert {*StudyRow.__dataclass_fields__, *EPOCH, *STEP_NUMBERS} <= {*_TAKEN}


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([Returns({"x": math.nan})], "hook given:Returns: x: got nan, need a finite number"),
        ([Returns({"x": True})], "x: got True"),
        ([Returns({"accuracy": 0.5})], "column: got 'accuracy'"),
        ([Returns({"a b": 0.5})], "column: got 'a b'"),
        ([Returns(3)], "hook given:Returns: got 3"),
        ([Returns({"x": 1}), Returns({"x": 2})], "column 'x' is another hook's too"),
        ([Returns({}, state={"x": {1, 2}})], "state_dict: got .*need a dict of tensors and plain"),
        ([Returns({}, state=[1])], "state_dict: got"),
        ([none], "hooks: got None, need a qtrain.Hook"),
        ([3], "hooks: got 3, need a qtrain.Hook, or a function"),
        (["a:b"], "hooks: got 'a:b'.*TrainConfig"),
        ("a:b", "hooks: got 'a:b', need a list"),
    ],
)
def test_what_is_no_hook_is_refused(tmp_path: Path, hooks: Any, message: str) -> None:
    config = small(tmp_path, recipe="fp32", baseline=False, epochs=1)
    with pytest.raises((ValueError, TypeError), match=message):
        train(config, hooks=hooks, say=quiet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hooks": "a:b"}, "hooks: got 'a:b', need a tuple"),
        ({"hooks": ("watch",)}, "hooks: got 'watch', need text"),
        ({"hooks": ("watch:",)}, "hooks: got 'watch:'"),
        ({"hooks": ("given:Watch",)}, "hooks: the configuration says 'given:Watch'.*give it again"),
        ({"hooks": (f"{THIS}:nothing",)}, "has no 'nothing'"),
        ({"hooks": (f"{THIS}:small",)}, "needs runs_dir"),
        ({"optimizer": "given:Adam"}, "optimizer: got 'given:Adam', need"),
        ({"optimizer": f"{THIS}:no_optimizer"}, "returned a int, need a torch.optim.Optimizer"),
        ({"optimizer": f"{THIS}:of_numpy"}, "optimizer: lr: got .*0.1.*, need Python's numbers"),
        ({"optimizer": f"{THIS}:stranger"}, "has parameters that are not the model's"),
        ({"optimizer": f"{THIS}:decaying", "nesterov": True}, "nesterov: got True with"),
        ({"loss_scale": 0.0}, "loss_scale: got 0.0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    tmp_path: Path, settings: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        train(small(tmp_path, **settings), say=quiet)
    assert not (tmp_path / "run").exists()
