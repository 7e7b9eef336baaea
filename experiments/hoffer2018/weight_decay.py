"""Experiment 1: what weight decay does to VGG-11, and three ways to have it without weight decay.

    python -m experiments.hoffer2018.weight_decay --data-dir PATH [--scale paper]

on            weight decay
off           none, but on the classifier
correction    off, each convolution channel's step times ||w||^2 / ||w_on||^2 (the paper's eq. 4)
norms         off, the convolutions' rate constant, their channels' norms set to those of `on`,
              times sqrt(10) wherever the rate of `on` dropped by 10

||w_on|| are the norms at the end of the same epoch of `on`, from the same seed.

Behind a norm, decay acts through decay x rate x steps: 5e-4 x 0.1 x 31,000 = 1.6 in the paper.  The
short run at scale `here` has a larger decay for the convolutions, which makes this 0.015 x 0.02 x
2,500 = 0.75; at twice that its steps are so long, 4 % of the norm, that the runs scatter.  The
rest decays by the paper's 5e-4, the norms under `on` alone.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import nn

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from qtrain import CorrectedSteps, EffectiveRates, NormHistory, NormSchedule, models

CONVOLUTIONS = ["features"]
#: of what is not behind a norm, at either scale
REST_DECAY = 5e-4


def groups(model: nn.Module, arm: str, setting: Setting) -> list[dict[str, Any]]:
    """Convolutions and norms decay under `on`, the classifier always; under `norms` the
    convolutions' rate is constant."""
    classifier = list(model.get_submodule("fc").parameters())
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    held = {id(p) for p in (*convolutions, *classifier)}
    norms = [p for p in model.parameters() if id(p) not in held]
    on, rest = float(arm == "on"), REST_DECAY
    return [
        {"params": convolutions, "weight_decay": on * setting.decay, "constant": arm == "norms"},
        {"params": classifier, "weight_decay": rest},
        {"params": norms, "weight_decay": on * rest},
    ]


def run(job: Job) -> Curve:
    """One arm; `on` keeps its norms for the others."""
    setting, arm = job.setting, job.arm
    dataset = images.load(job)
    torch.manual_seed(job.seed)
    model = models.vgg11(
        num_classes=dataset.num_classes,
        in_channels=dataset.sizes["in_channels"],
        width=setting.width,
    )
    history = NormHistory(only=CONVOLUTIONS)
    if arm in ("correction", "norms"):
        assert job.needed is not None
        history = NormHistory.load(job.needed)
    medians: list[float] = []

    def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        hook: CorrectedSteps | NormSchedule | None = None
        if arm == "correction":
            hook = CorrectedSteps(optimizer, model, history.at(0))
        if arm == "norms":
            hook = NormSchedule(optimizer, model, history.at(0))
        correction = hook if isinstance(hook, CorrectedSteps) else None
        rates = EffectiveRates(model, optimizer, correction=correction, only=CONVOLUTIONS)

        def before(epoch: int) -> None:
            if hook is not None:
                hook.set_norms(history.at(epoch))
            if isinstance(hook, NormSchedule):
                hook.factor = math.sqrt(1 / setting.gamma) ** setting.drops(epoch)

        def after(epoch: int) -> None:
            if arm == "on":
                history.record(model)
            rates.record(epoch + 1)
            last = [row.median for row in rates.rows if row.step == epoch + 1]
            medians.append(math.exp(sum(map(math.log, last)) / len(last)))

        return {"before_epoch": before, "after_epoch": after}

    curve = images.fit(
        model,
        dataset,
        job,
        groups=lambda model: groups(model, arm, setting),
        prepare=prepare,
    )
    for row, median in zip(curve.epochs, medians, strict=False):  # a failed epoch has no row
        row["effective_rate"] = float(f"{median:.6g}")
    if arm == "on" and curve.failed is None:
        history.save(job.kept)
    return curve


EXPERIMENT = Experiment(
    name="weight_decay",
    arms={
        "on": "weight decay",
        "off": "none but on the classifier",
        "correction": "off, with eq. 4's rates",
        "norms": "off, norms set instead of the rate",
    },
    reference="on",
    needs={"correction": "on", "norms": "on"},
    paper={"on": 90.55, "off": 89.29, "correction": 90.56, "norms": 90.23},
    published="top-1 in %, read off the poster",
    settings={
        "here": Setting(
            network="vgg11", width=8, images=5000, epochs=32, milestones=(8, 16, 24), every=4,
            batch=64, rate=0.02, decay=0.015,
        ),
        "paper": Setting(
            network="vgg11", epochs=80, milestones=(20, 40, 60), batch=128, rate=0.1, decay=5e-4,
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args: argparse.Namespace = images.parser(__doc__ or "", __file__).parse_args(arguments)
    label = "learning rate / ||w||², convolutions"
    publish(execute(EXPERIMENT, args), args.output, beside="effective_rate", label=label)


if __name__ == "__main__":
    main()
