"""What a study of the confirmation is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qtrain import NormRecipe, Recipe, deviations, recipes


@dataclass(frozen=True, kw_only=True)
class StudyOf:
    """What `qtrain.study` is called with, the first arm the baseline.

    runs       of each arm, with seeds from `first` on; so many that a difference of 0 would be
               within the margin of its claims with 80 % power, were the deviation of a run what
               `deviation` says
    in_order   its arms read what earlier ones of their seed wrote: one run at a time
    """

    model: str
    arms: Mapping[str, Any]
    config: Mapping[str, Any]
    runs: int
    deviation: float
    rates: tuple[float, ...] = ()
    data: str = "cifar10"
    metric: str = "accuracy"
    first: int = 0
    in_order: bool = False

    @property
    def seeds(self) -> range:
        """Those of its runs."""
        return range(self.first, self.first + self.runs)


SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
_128 = {**SGD, "batch_size": 128, "lr": 0.1}
EPOCHS_20 = {**_128, "epochs": 20}
#: the scale of the last norm of every residual branch begins at 0, as the paper's code has it
EPOCHS_10 = {**_128, "epochs": 10, "zero_init_residual": True}


def full(deviation: deviations.Deviation, **more: Any) -> Recipe:
    """Full precision, but for the norms."""
    norm = NormRecipe(deviation=deviation, **more)
    return replace(recipes.get("fp32"), name=f"fp32 {deviation.name}", norm=norm)
