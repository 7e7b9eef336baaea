"""Every named recipe trained on digits and on text: what it costs in accuracy and in hardware.

    python -m experiments.recipes.accuracy --jobs 2
    python -m experiments.recipes.accuracy --jobs 2 --data text --data-dir TEXT

digits   a ResNet of three stages on 8 x 8 digits; the metric is the test accuracy in percent
text     a Transformer of one layer that predicts the next character of a part of any text, its
         attention quantized too; the metric is the loss on the test text in nats

A run's cost is that of one training step beside full precision: bytes moved and energy of all
products (qtrain.cost).  Margins, set before the runs: `MARGINS`, about twice the deviation of full
precision between seeds.  A verdict is of one recipe, not of the best of many: intervals are 95 %
each, not of all recipes together.

Writes results/<data>-here.json and, with what is there of both, results/recipes.svg and .md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness import images, text
from experiments.harness.experiment import Experiment, Job, options
from experiments.harness.loop import Curve, Setting
from experiments.harness.runs import execute
from experiments.recipes.summary import COSTS, publish
from qtrain import cost, models, quantize, recipes
from qtrain.data import Batches

ARMS = {name: recipes.get(name).when for name in recipes.names()}


def digits(job: Job) -> Curve:
    """One recipe on digits."""
    dataset = images.load(job)
    model = quantize(images.resnet(job, dataset), recipe=job.arm, seed=job.seed)
    batch, _ = next(iter(Batches(dataset.train, batch_size=job.setting.batch, seed=job.seed)))
    curve = images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))
    return replace(curve, more=costs(model, batch))


def characters(job: Job) -> Curve:
    """One recipe on text."""
    more: dict[str, Any] = dict(job.setting.more or {})
    dataset = text.load(job)
    parts = {
        name: replace(split, tokens=split.tokens[: more[name]])
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    dataset = replace(dataset, **parts)
    torch.manual_seed(job.seed)
    model: nn.Module = models.CharTransformer(
        **dataset.sizes, width=job.setting.width, depth=more["depth"], heads=more["heads"]
    )
    model = quantize(model, recipe=job.arm, seed=job.seed)
    batch, _ = next(iter(Batches(dataset.train, batch_size=job.setting.batch, seed=job.seed)))
    decay = job.setting.decay
    curve = text.fit(model, dataset, job, decay=decay, evaluate=text.evaluated)
    return replace(curve, more=costs(model, batch))


def costs(model: nn.Module, batch: Tensor) -> Mapping[str, float]:
    """Of a training step, in parts of full precision's: bytes moved, energy."""
    report = cost(model.train(), batch)
    both = report.rows, report.fp32
    sums = {name: [sum(getattr(row, name) for row in rows) for rows in both] for name in COSTS}
    return {name: round(own / full, 4) for name, (own, full) in sums.items()}


DIGITS = Experiment(
    name="digits",
    arms=ARMS,
    reference="fp32",
    paper={},
    published="not this task",
    settings={
        "here": Setting(
            network="resnet8", width=16, epochs=8, milestones=(5, 7), every=8, batch=32,
            rate=0.05, decay=5e-4,
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
            network="transformer", width=64, epochs=2, milestones=(1,), gamma=0.3, batch=8,
            rate=4e-3, decay=0.1, clip=1.0, every=2,
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
    publish(args.output)


if __name__ == "__main__":
    main()
