"""Whether it matters that products of functions follow the recipe: curves of a ViT and a Llama.

    python -m experiments.coverage.accuracy --jobs 2
    python -m experiments.coverage.accuracy --jobs 2 --data text --data-dir TEXT

digits   a ViT of three blocks on 8 x 8 digits by SGD with momentum; test accuracy in percent
text     a Llama of two blocks that predicts the next character of a part of any text by AdamW; loss
         on the test text in nats

Arms: full precision; int8 in every product; int8 with products of functions left, as a conversion
of layers alone has it.  Set before the runs: margins of 1.5 points and 0.05 nats, about twice the
deviation of full precision between seeds, as in experiments/recipes.

Writes results/<data>-here.json and .svg.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from experiments.coverage.networks import Llama, ViT
from experiments.harness import images, small, text
from experiments.harness.experiment import Job
from experiments.harness.loop import Curve, Setting
from qtrain import quantize, summary
from qtrain.data import Batches, DataSet

ARMS = {
    "fp32": "full precision",
    "int8": "int8 in every product",
    "int8, functions left": "int8 in layers; products of functions in full precision",
}


def _converted(model: nn.Module, dataset: DataSet, job: Job) -> tuple[nn.Module, float]:
    """The arm's model, and the share of its multiply-adds that follow the recipe."""
    if job.arm == "fp32":
        return model, 0.0
    model = quantize(model, recipe="int8", seed=job.seed, functional=job.arm == "int8")
    batch, _ = next(iter(Batches(dataset.train, batch_size=job.setting.batch, seed=job.seed)))
    share = summary(model, batch).share
    assert share is not None
    return model, round(share.value, 4)


def digits(job: Job) -> Curve:
    """One arm on digits."""
    dataset, more = images.load(job), dict(job.setting.more or {})
    torch.manual_seed(job.seed)
    plain = ViT(
        in_channels=dataset.sizes["in_channels"], image_size=dataset.sizes["image_size"],
        classes=dataset.num_classes, width=job.setting.width, **more,
    )  # fmt: skip
    model, share = _converted(plain, dataset, job)
    curve = images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))
    return replace(curve, more={"share": share})


def characters(job: Job) -> Curve:
    """One arm on text."""
    dataset, more = small.passage(job), dict(job.setting.more or {})
    torch.manual_seed(job.seed)
    plain = Llama(
        vocabulary=dataset.num_classes, width=job.setting.width, depth=more["depth"],
        heads=more["heads"],
    )  # fmt: skip
    model, share = _converted(plain, dataset, job)
    decay = job.setting.decay
    curve = text.fit(model, dataset, job, decay=decay, evaluate=text.evaluated)
    return replace(curve, more={"share": share})


ON_DIGITS = Setting(
    network="vit", width=48, epochs=20, every=20, batch=32, rate=0.02, milestones=(14, 18),
    decay=5e-4, clip=1.0, more={"patch": 2, "depth": 3, "heads": 4},
)  # fmt: skip
TASKS = small.tasks(
    ARMS,
    (digits, ON_DIGITS),
    (characters, small.transformer(epochs=2, milestones=(1,), gamma=0.3)),
)


def main(arguments: list[str] | None = None) -> None:
    small.main(TASKS, __doc__ or "", __file__, arguments)


if __name__ == "__main__":
    main()
