"""Experiment 12: a ResNet of CIFAR-10 in 8 bits against full precision, under its usual schedule.

    python -m experiments.banner2018.cifar_resnet --data cifar10 --data-dir PATH [--scale paper]

fp32    full precision, torch's batch-norm
range   full precision, range batch-norm
8 bits  the house recipe, range batch-norm

The rate drops at epochs 81, 122 and 164 of 200 at scale `paper`; `here` is a tenth of that, a
shorter network on a part of the images.
"""

from __future__ import annotations

from experiments.harness import images, ranks
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from qtrain import quantize


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    if job.arm != "fp32":
        recipe = "fp32" if job.arm == "range" else "int8"
        model = quantize(model, recipe=recipe, norm="range", seed=job.seed)
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))


EXPERIMENT = Experiment(
    name="cifar_resnet",
    arms={
        "fp32": "full precision, torch's batch-norm",
        "range": "full precision, range batch-norm",
        "8 bits": "the house recipe, range batch-norm",
    },
    reference="fp32",
    paper={},
    published="no number found",
    settings={
        "here": Setting(
            network="resnet8", width=8, images=4000, epochs=20, milestones=(8, 12, 16), every=4,
            batch=64, rate=0.1, decay=1e-4,
        ),
        "paper": Setting(
            network="resnet20", width=16, epochs=200, milestones=(81, 122, 164), batch=128,
            rate=0.1, decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    with ranks.joined(args.device):
        result = execute(EXPERIMENT, args)
        if ranks.rank() == 0:
            publish(result, args.output)


if __name__ == "__main__":
    main()
