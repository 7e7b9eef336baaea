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

from experiments.harness import images, text
from experiments.harness.experiment import Experiment, Job, options
from experiments.harness.loop import Curve, Setting
from experiments.harness.runs import execute
from qtrain import LowPrecision, Update, low_precision_, models

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
    more: dict[str, Any] = dict(job.setting.more or {})
    dataset, watched = text.load(job), Watched(job)
    parts = {
        name: replace(split, tokens=split.tokens[: more[name]])
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    dataset = replace(dataset, **parts)
    torch.manual_seed(job.seed)
    model: nn.Module = models.CharTransformer(
        **dataset.sizes, width=job.setting.width, depth=more["depth"], heads=more["heads"]
    )
    curve = text.fit(
        model, dataset, job, decay=job.setting.decay, evaluate=text.evaluated, prepare=watched
    )
    return replace(curve, more=watched.lost())


DIGITS = Experiment(
    name="digits",
    arms=ARMS,
    reference="fp32",
    paper={},
    published="not this task",
    settings={
        "here": Setting(
            network="resnet8", width=16, epochs=8, milestones=(4, 6), every=8, batch=32,
            rate=0.02, decay=5e-4,
        ),
    },
    run=digits,
)  # fmt: skip

TEXT = Experiment(
    name="text",
    arms=ARMS,
    reference="fp32",
    metric="loss",
    paper={},
    published="not this task",
    settings={
        "here": Setting(
            network="transformer", width=64, epochs=3, milestones=(1, 2), batch=8, rate=4e-3,
            decay=0.1, clip=1.0, every=3,
            more={"context": 64, "depth": 1, "heads": 4, "train": 300_000, "test": 30_000},
        ),
    },
    run=characters,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__ or "", __file__, data=["digits", "text"], default="digits")
    args = parser.parse_args(arguments)
    args.workers = 0
    execute(TEXT if args.data == "text" else DIGITS, args)


if __name__ == "__main__":
    main()
