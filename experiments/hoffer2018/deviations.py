"""Experiment 2: batch-norm with the L1, L-infinity and top-10 deviation instead of L2.

    python -m experiments.hoffer2018.deviations --data-dir PATH [--scale paper] [--network resnet50]

Full precision throughout; each constant is the one that makes the deviation 1 on a unit Gaussian.
Scale `paper` is ImageNet, any image folder.
"""

from __future__ import annotations

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from experiments.hoffer2018 import norms
from qtrain import deviations


def run(job: Job) -> Curve:
    """One arm."""
    return norms.run(
        job,
        {
            "l2": None,
            "l1": deviations.l1(),
            "top10": deviations.topk(10),
            "linf": deviations.linf(),
        },
    )


EXPERIMENT = Experiment(
    name="deviations",
    arms={
        "l2": "torch's batch-norm",
        "l1": "mean magnitude",
        "top10": "mean of the 10 largest magnitudes",
        "linf": "largest magnitude",
    },
    reference="l2",
    paper={"l2": 66.4, "l1": 66.3, "top10": 66.0, "linf": 63.8},
    published="ResNet-18, ImageNet, top-1 in %, read off the poster",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=5000, epochs=16, milestones=(8, 12), every=4,
            batch=64, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet18", epochs=100, milestones=(30, 60, 90), batch=256, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    publish(execute(EXPERIMENT, args), args.output)


if __name__ == "__main__":
    main()
