"""Experiment 5: bounded weight norm against weight norm and batch-norm.

    python -m experiments.hoffer2018.bounded_norm --data-dir PATH [--scale paper]

Both weight norms (p = 2) leave the classifier's weight, the only one that decays, and go with
mean-only batch-norm; their rate and clipping are in the setting's `more`.  Batch-norm is trained
the usual way.  Scale `paper` is ResNet-50 on ImageNet, any image folder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from qtrain import bound_weights, quantize, weight_norm


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The classifier's weight alone decays."""
    weight = model.get_submodule("fc").get_parameter("weight")
    rest = [p for p in model.parameters() if p is not weight and p.requires_grad]
    return [{"params": [weight], "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    if job.arm == "batch_norm":
        return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))
    normed = {"bounded": bound_weights, "weight_norm": weight_norm}[job.arm]
    model = quantize(normed(model, skip=["fc"]), recipe="fp32", norm="none")
    own = replace(job, setting=replace(job.setting, **dict(job.setting.more or {})))
    return images.fit(model, dataset, own, groups=lambda model: groups(model, own.setting.decay))


EXPERIMENT = Experiment(
    name="bounded_norm",
    arms={
        "batch_norm": "batch-norm, weight decay",
        "bounded": "bounded weight norm",
        "weight_norm": "weight norm, learned g",
    },
    reference="batch_norm",
    # the poster's weight norm, error 33, is a constant line quoted from another paper: not an arm
    paper={"batch_norm": 74.0, "bounded": 71.8},
    published="ResNet-50, ImageNet, top-1 in %, read off the poster",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=5000, epochs=20, milestones=(10, 15), every=4,
            batch=64, rate=0.1, decay=5e-4, more={"rate": 0.2, "clip": 5.0},
        ),
        "paper": Setting(
            network="resnet50", epochs=90, milestones=(30, 60, 80), batch=256, rate=0.1,
            decay=1e-4, more={"rate": 0.2, "clip": 5.0},
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    publish(execute(EXPERIMENT, args), args.output)


if __name__ == "__main__":
    main()
