"""What a study is to do: its arms, its seeds, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..folder import folder_of

METRICS = ("accuracy", "loss")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared: a recipe, with a model and settings.

    name     in tables and in names of folders: its recipe's, and its model's where there are more
    recipe   its recipe's name in the study
    group    its model's: arms are compared with the baseline of their group
    config   of its runs, but for seed and name
    model    what `train` takes as `model` where it is a value of Python, or None
    """

    name: str
    recipe: str
    group: str
    config: TrainConfig
    model: Any = field(default=None, compare=False)

    @property
    def folder(self) -> str:
        """What the names of its runs' folders begin with."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study: every arm with every seed.

    name       its folder within `runs_dir`
    baseline   the recipe that the others are compared with, by name
    metric     "accuracy" or "loss", of the test after the last epoch, or a column of its hooks'
    margin     what counts as equal, in the metric's unit: 0.01 is a point of accuracy
    primary    recipes whose verdicts hold together at 95 %
    data       what `train` takes as `data` where it is a value of Python, or None
    """

    name: str
    runs_dir: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    metric: str
    margin: float
    primary: tuple[str, ...]
    data: Any = field(default=None, compare=False)

    @property
    def measured(self) -> str:
        """Such as "test accuracy"."""
        return f"test {self.metric}" if self.metric in METRICS else self.metric

    @property
    def place(self) -> Path:
        """The folder of its runs' folders."""
        return folder_of(self.arms[0].config).parent

    def jobs(self) -> list[Job]:
        """Every run, all arms of a seed before the next seed."""
        return [self.job(arm, seed) for seed in self.seeds for arm in self.arms]

    def job(self, arm: Arm, seed: int) -> Job:
        """One run, in a folder that tells which."""
        config = replace(arm.config, seed=seed, name=f"{arm.folder}-seed{seed}")
        return Job(arm=arm.name, seed=seed, config=config, model=arm.model, data=self.data)

    def rivals(self) -> dict[str, tuple[str, list[str], list[str]]]:
        """Of each group its baseline's arm, all its arms, and those of them that are primary."""
        found = {}
        for group in dict.fromkeys(arm.group for arm in self.arms):
            own = {arm.recipe: arm.name for arm in self.arms if arm.group == group}
            primary = [own[recipe] for recipe in self.primary]
            found[group] = own[self.baseline], list(own.values()), primary
        return found


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: what `train` is called with."""

    arm: str
    seed: int
    config: TrainConfig
    model: Any = None
    data: Any = None

    @property
    def text(self) -> str:
        """Such as "int8, seed 3"."""
        return f"{self.arm}, seed {self.seed}"
