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

from torch import Tensor, nn

from experiments.harness import images, small, text
from experiments.harness.experiment import Job
from experiments.harness.loop import Curve
from experiments.recipes.summary import COSTS, publish
from qtrain import cost, quantize, recipes
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
    model, dataset = small.characters(job)
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


TASKS = small.tasks(
    ARMS,
    (digits, small.resnet(rate=0.05, milestones=(5, 7))),
    (characters, small.transformer(epochs=2, milestones=(1,), gamma=0.3)),
)


def main(arguments: list[str] | None = None) -> None:
    publish(small.main(TASKS, __doc__ or "", __file__, arguments))


if __name__ == "__main__":
    main()
