"""Weights of bf16 without master weights: what their rounding costs in accuracy.

    python -m experiments.updates.accuracy --jobs 2 --seeds 8
    python -m experiments.updates.accuracy --jobs 2 --seeds 8 --data text --data-dir TEXT
    python -m experiments.updates.claims

digits   a ResNet of three stages on 8 x 8 digits by SGD with momentum; test accuracy in percent
text     a Transformer of one layer that predicts the next character by AdamW, with a rate that ends
         at a hundredth of its peak; loss on the test text in nats

Products run in full precision: all that differs between the arms is the weight after the step.  A
run keeps which part of its updates was lost, and the claims, their margins set before the runs, are
in claims.py.  Writes results/<data>-here.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from experiments.harness import images, small, text
from experiments.harness.experiment import Job
from experiments.harness.loop import Curve
from qtrain import LowPrecision, Update, low_precision_

UPDATES = {
    "fp32": None,
    "nearest": Update(weight="bf16"),
    "stochastic": Update(weight="bf16", rounding="stochastic(16)"),
    "kahan": Update(weight="bf16", compensation="bf16"),
}
ARMS = {name: "fp32 weights" if own is None else str(own) for name, own in UPDATES.items()}


class Watched:
    """Puts an arm's update on an optimizer, and tells what it lost."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._handle: LowPrecision | None = None

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        update = UPDATES[self._job.arm]
        if update is not None:
            self._handle = low_precision_(optimizer, update, model=model, seed=self._job.seed)
        return {}

    def lost(self) -> Mapping[str, float]:
        """The part of all updates that left a weight and its compensation as they were."""
        rows = [] if self._handle is None else self._handle.report().rows
        seen, lost = sum(row.seen for row in rows), sum(row.lost for row in rows)
        return {"lost": round(lost / seen, 4) if seen else 0.0}


def digits(job: Job) -> Curve:
    """One arm on digits."""
    dataset, watched = images.load(job), Watched(job)
    model = images.resnet(job, dataset)
    curve = images.fit(
        model, dataset, job, groups=lambda model: images.groups(job, model), prepare=watched
    )
    return replace(curve, more=watched.lost())


def characters(job: Job) -> Curve:
    """One arm on text."""
    (model, dataset), watched = small.characters(job), Watched(job)
    curve = text.fit(
        model, dataset, job, decay=job.setting.decay, evaluate=text.evaluated, prepare=watched
    )
    return replace(curve, more=watched.lost())


TASKS = small.tasks(
    ARMS,
    (digits, small.resnet(rate=0.02, milestones=(4, 6))),
    (characters, small.transformer(epochs=3, milestones=(1, 2))),
)


def main(arguments: list[str] | None = None) -> None:
    small.main(TASKS, __doc__ or "", __file__, arguments)


if __name__ == "__main__":
    main()
