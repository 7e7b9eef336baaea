"""What weight decay does to VGG-11, and three ways to have it without weight decay (Hoffer et al.
2018, section 3).

on            weight decay
off           none, but on the classifier
correction    off, each convolution channel's step times ||w||^2 / ||w_on||^2 (eq. 4)
norms         off, the convolutions' rate constant, their channels' norms set to those of `on`,
              times sqrt(10) wherever the rate of `on` dropped by 10

||w_on|| are the norms at the end of the same epoch of `on`, from the same seed, which its hook
writes into its run's folder.  Behind a norm, decay acts through decay x rate x steps: 5e-4 x 0.1 x
31,000 = 1.6 in the paper, 0.015 x 0.02 x 2,500 = 0.75 in the small study, where the rest decays by
the paper's 5e-4 too, the norms under `on` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import nn

from experiments.confirm.study_of import StudyOf
from qtrain import (
    CorrectedSteps,
    EffectiveRates,
    Hook,
    NormHistory,
    NormSchedule,
    TrainConfig,
    data,
    models,
)
from qtrain.data import DataSet, FileSplit

CONVOLUTIONS = ["features"]
#: of what is not behind a norm
REST_DECAY = 5e-4
#: training images of the small study, as many a class
IMAGES = 5000


class Rates(Hook):
    """The column `effective_rate`: the geometric mean over convolutions of the median channel's
    learning rate / ||w||^2."""

    correction: CorrectedSteps | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config

    def after_epoch(self, epoch: int) -> Mapping[str, float]:
        now = EffectiveRates(
            self.model, self.optimizer, correction=self.correction, only=CONVOLUTIONS
        )
        now.record(epoch)
        return {"effective_rate": geometric_mean(row.median for row in now.rows)}


class Recorded(Rates):
    """Of `on`: its norms, epoch by epoch, in the file norms.pt of its run."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        super().begin(model, optimizer, config)
        self.history = NormHistory(only=CONVOLUTIONS)

    def after_epoch(self, epoch: int) -> Mapping[str, float]:
        self.history.record(self.model)
        if epoch + 1 == self.config.epochs:
            self.history.save(_folder(self.config) / self.config.name / "norms.pt")
        return super().after_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.history.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state)


class Corrected(Rates):
    """Of `correction`."""

    kind: type[CorrectedSteps | NormSchedule] = CorrectedSteps

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        super().begin(model, optimizer, config)
        path = _folder(config) / f"on-seed{config.seed}" / "norms.pt"
        if not path.exists():
            raise ValueError(
                f"{path}: the norms of the arm 'on' of seed {config.seed} are not there; run its "
                f"arms in order, one at a time, and keep its folder"
            )
        self.history = NormHistory.load(path)
        if len(self.history.epochs) != config.epochs:
            got = len(self.history.epochs)
            raise ValueError(f"{path}: norms of {got} epochs, need {config.epochs}")
        self.steps = self.kind(optimizer, model, self.history.at(0))
        if isinstance(self.steps, CorrectedSteps):
            self.correction = self.steps

    def before_epoch(self, epoch: int) -> None:
        self.steps.set_norms(self.history.at(epoch))
        if isinstance(self.steps, NormSchedule):
            drops = sum(epoch >= milestone for milestone in self.config.milestones)
            self.steps.factor = math.sqrt(1 / self.config.gamma) ** drops


class Scheduled(Corrected):
    """Of `norms`."""

    kind = NormSchedule


def _folder(config: TrainConfig) -> Path:
    return Path(config.runs_dir).expanduser()


def _groups(
    model: nn.Module, config: TrainConfig, *, on: bool = False, constant: bool = False
) -> torch.optim.Optimizer:
    """Convolutions and norms decay under `on`, the classifier always."""
    classifier = list(model.get_submodule("fc").parameters())
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    held = {id(p) for p in (*convolutions, *classifier)}
    norms = [p for p in model.parameters() if id(p) not in held]
    groups: list[dict[str, Any]] = [
        {"params": convolutions, "weight_decay": on * config.weight_decay, "constant": constant},
        {"params": classifier, "weight_decay": REST_DECAY},
        {"params": norms, "weight_decay": on * REST_DECAY},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def decayed(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Of `on`."""
    return _groups(model, config, on=True)


def free(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Of `off` and `correction`."""
    return _groups(model, config)


def constant(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Of `norms`."""
    return _groups(model, config, constant=True)


def narrow(num_classes: int, in_channels: int) -> nn.Module:
    """VGG-11 of width 8."""
    return models.vgg11(num_classes=num_classes, in_channels=in_channels, width=8)


def part(data_dir: str, cache_dir: str | None = None) -> DataSet:
    """CIFAR-10, its files or a folder of its images, with the first `IMAGES` training images, as
    many of each class."""
    name = "imagefolder" if (Path(data_dir) / "train").is_dir() else "cifar10"
    found = data.load(name, data_dir=data_dir, cache_dir=cache_dir)
    labels: Any = found.train.truth
    each = IMAGES // found.num_classes
    kept = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(found.num_classes)])
    own: dict[str, Any] = {"labels": labels[kept]}
    train: Any = found.train
    if isinstance(train, FileSplit):
        own["paths"] = [train.paths[i] for i in kept.tolist()]
    else:
        own["images"] = train.images[kept]
    return replace(found, train=replace(train, **own))


def _arm(optimizer: str, hook: str) -> dict[str, Any]:
    here = "experiments.confirm.decay"
    return {"recipe": "fp32", "optimizer": f"{here}:{optimizer}", "hooks": [f"{here}:{hook}"]}


_ARMS = {
    "on": _arm("decayed", "Recorded"), "off": _arm("free", "Rates"),
    "correction": _arm("free", "Corrected"), "norms": _arm("constant", "Scheduled"),
}  # fmt: skip
_STEPS = {"schedule": "step", "gamma": 0.1, "warmup": 0.0, "momentum": 0.9}
STUDIES = {
    "weight decay": StudyOf(
        model="vgg11", arms=_ARMS, runs=8, deviation=0.001, in_order=True,
        config={
            **_STEPS, "epochs": 80, "batch_size": 128, "lr": 0.1, "milestones": [20, 40, 60],
            "weight_decay": 5e-4,
        },
    ),
    # fresh seeds: 0 to 5 were looked at while the setting was looked for
    "weight decay small": StudyOf(
        model="experiments.confirm.decay:narrow", data="experiments.confirm.decay:part",
        arms=_ARMS, runs=12, first=6, deviation=0.004, in_order=True,
        config={
            **_STEPS, "epochs": 32, "batch_size": 64, "lr": 0.02, "milestones": [8, 16, 24],
            "weight_decay": 0.015, "threads": 1,
        },
    ),
}  # fmt: skip
