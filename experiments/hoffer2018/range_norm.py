"""Experiment 7: range batch-norm against batch-norm, both in full precision.

    python -m experiments.hoffer2018.range_norm --data-dir PATH [--scale paper]

The range of the whole batch, as the paper's text has it, and the mean range of its 16 parts, as the
published code; both with the exact constant.  Scale `paper` is ResNet-50 on ImageNet, any image
folder.  (From Banner et al. 2018, arXiv 1805.11046, which continues the paper's work.)
"""

from __future__ import annotations

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from experiments.hoffer2018 import norms
from experiments.hoffer2018.deviations import EXPERIMENT as DEVIATIONS
from qtrain import deviations


def run(job: Job) -> Curve:
    """One arm."""
    return norms.run(
        job,
        {"batch_norm": None, "range": deviations.range_(), "range16": deviations.range_(chunks=16)},
    )


EXPERIMENT = Experiment(
    name="range_norm",
    arms={
        "batch_norm": "torch's batch-norm",
        "range": "range of the batch",
        "range16": "mean range of 16 parts of the batch",
    },
    reference="batch_norm",
    paper={"batch_norm": 72.4, "range": 72.2},
    published="ResNet-50, ImageNet, top-1 in %, read off the poster",
    settings={
        "here": DEVIATIONS.settings["here"],
        "paper": Setting(
            network="resnet50", epochs=90, warmup=5, milestones=(30, 60, 80), batch=128, rate=0.1,
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
