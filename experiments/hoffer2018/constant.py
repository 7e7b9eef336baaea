"""Experiment 3: how much L1 batch-norm minds its constant: sqrt(pi / 2) times 1/4, 1 and 4.

    python -m experiments.hoffer2018.constant --data-dir PATH [--scale paper]

Scale `paper` is ResNet-18 on ImageNet, any image folder, for 80 epochs.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve
from experiments.harness.report import publish
from experiments.harness.runs import execute
from experiments.hoffer2018 import norms
from experiments.hoffer2018.deviations import EXPERIMENT as DEVIATIONS
from qtrain import deviations


def run(job: Job) -> Curve:
    """One arm."""
    times = {"quarter": 0.25, "whole": 1.0, "fourfold": 4.0}
    return norms.run(job, {arm: deviations.l1(times=factor) for arm, factor in times.items()})


EXPERIMENT = Experiment(
    name="constant",
    arms={"whole": "L1", "quarter": "L1, constant / 4", "fourfold": "L1, constant * 4"},
    reference="whole",
    paper={"whole": 66.1, "quarter": 63.9, "fourfold": 64.6},
    published="ResNet-18, ImageNet, top-1 in %, read off the poster",
    settings={
        "here": DEVIATIONS.settings["here"],
        "paper": replace(DEVIATIONS.settings["paper"], epochs=80),
    },
    run=run,
)


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    publish(execute(EXPERIMENT, args), args.output)


if __name__ == "__main__":
    main()
