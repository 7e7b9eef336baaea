"""Experiment 8: ResNet-18 in 8 bits with range batch-norm against full precision.

    python -m experiments.banner2018.int8_resnet --data-dir PATH
    torchrun --nproc-per-node 8 -m experiments.banner2018.int8_resnet --data-dir IMAGENET \
        --scale paper --workers 8

fp32         full precision, torch's batch-norm
range        full precision, range batch-norm with the exact constant
banner2018   the paper's recipe, quantized range batch-norm with the paper's constant included
int8         the house recipe with range batch-norm: weights per channel, a bf16 copy of the
             gradient for grad_weight, the exact constant

Scale `paper` is ImageNet, any image folder; under torchrun each rank takes its part of every batch.
Scale `here` runs a narrow ResNet on images, then again on the digits that come with the package
(results/int8_digits-here.json).
"""

from __future__ import annotations

from argparse import Namespace

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
    if job.arm == "banner2018":
        model = quantize(model, recipe="banner2018", seed=job.seed)
    elif job.arm != "fp32":
        recipe = "int8" if job.arm == "int8" else "fp32"
        model = quantize(model, recipe=recipe, norm="range", seed=job.seed)
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))


ARMS = {
    "fp32": "full precision, torch's batch-norm",
    "range": "full precision, range batch-norm",
    "banner2018": "the paper's recipe",
    "int8": "the house recipe, range batch-norm",
}

EXPERIMENT = Experiment(
    name="int8_resnet",
    arms=ARMS,
    reference="fp32",
    paper={"fp32": 66.0, "banner2018": 66.5},
    published="ResNet-18, ImageNet, top-1 in %, read off the poster",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=4000, epochs=10, milestones=(6, 8), every=5,
            batch=64, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet18", epochs=90, warmup=5, milestones=(30, 60, 80), batch=128, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip

DIGITS = Experiment(
    name="int8_digits",
    arms=ARMS,
    reference="fp32",
    paper={},
    published="not this task",
    settings={
        "here": Setting(
            network="resnet10", width=8, epochs=16, milestones=(8, 12), every=4, batch=32,
            rate=0.05, decay=5e-4,
        ),
    },
    run=run,
)  # fmt: skip


def on_digits(args: Namespace) -> Namespace:
    """The options for the data that come with the package."""
    return Namespace(**{**vars(args), "data": "digits", "data_dir": None, "cache_dir": None})


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    todo = [(EXPERIMENT, args)]
    if args.scale == "here":
        todo.append((DIGITS, on_digits(args)))
    with ranks.joined(args.device):
        for experiment, own in todo:
            result = execute(experiment, own)
            if ranks.rank() == 0:
                publish(result, args.output)


if __name__ == "__main__":
    main()
