"""Experiment 6: Lp weight norm on a Transformer and an LSTM that model text.

    python -m experiments.hoffer2018.lp_norm --data text --data-dir PATH [--scale paper]

plain         the weights as they are
l2, l1, linf  bounded weight norm: every output channel of every linear and recurrent layer but the
              last keeps the mean of the initial p-norms

The paper translates; here the same networks' small kin predict the next character of any text.
Weights start as N(0, 1 / fan-in), so that those that are bounded have a size to keep; AdamW, whose
decay of 0.1 is the plain weights' alone, since a bounded one's size has no effect.

Writes results/lp_transformer-<scale>.json, lp_lstm-<scale>.json and their figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from experiments.harness import text
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from qtrain import bound_weights, models
from qtrain.data import DataSet

ORDERS = {"l2": 2.0, "l1": 1.0, "linf": math.inf}


def network(job: Job, dataset: DataSet) -> nn.Module:
    """The setting's model under the run's seed, its weights bounded as the arm says."""
    setting = job.setting
    torch.manual_seed(job.seed)
    more: dict[str, Any] = dict(setting.more or {})
    shape = {"width": setting.width, "depth": more["depth"]}
    model: nn.Module
    if setting.network == "lstm":
        model = models.CharLSTM(num_classes=dataset.num_classes, **shape)
    else:
        model = models.CharTransformer(**dataset.sizes, heads=more["heads"], **shape)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LSTM):
            for parameter in module.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if job.arm in ORDERS:
        model = bound_weights(model, p=ORDERS[job.arm], skip=["fc"])
    return model


def run(job: Job) -> Curve:
    """One arm."""
    dataset = text.load(job)
    return text.fit(
        network(job, dataset),
        dataset,
        job,
        decay=job.setting.decay if job.arm == "plain" else 0.0,
        evaluate=lambda model, dataset: {"loss": text.evaluated(model, dataset)["loss"]},
    )


def experiment(name: str, here: Setting, paper: Setting, run: Callable[[Job], Curve]) -> Experiment:
    """One of the two networks."""
    return Experiment(
        name=f"lp_{name}",
        arms={
            "plain": "no weight norm",
            "l2": "bounded, p = 2",
            "l1": "bounded, p = 1",
            "linf": "bounded, p = infinity",
        },
        reference="l2",
        metric="loss",
        paper={},
        published="translation, not this task",
        settings={"here": here, "paper": paper},
        run=run,
    )


TRANSFORMER = experiment(
    "transformer",
    Setting(
        network="transformer", width=64, epochs=3, milestones=(2,), batch=16, rate=4e-3,
        decay=0.1, clip=1.0, more={"context": 64, "depth": 2, "heads": 4},
    ),
    Setting(
        network="transformer", width=512, epochs=40, milestones=(20, 30), warmup=2, batch=64,
        rate=5e-4, decay=0.1, clip=1.0, more={"context": 256, "depth": 6, "heads": 8},
    ),
    run,
)  # fmt: skip
LSTM = experiment(
    "lstm",
    Setting(
        network="lstm", width=128, epochs=4, milestones=(3,), batch=16, rate=4e-3, decay=0.1,
        clip=1.0, more={"context": 64, "depth": 1},
    ),
    Setting(
        network="lstm", width=512, epochs=40, milestones=(20, 30), warmup=2, batch=64, rate=1e-3,
        decay=0.1, clip=1.0, more={"context": 256, "depth": 2},
    ),
    run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = text.parser(__doc__ or "", __file__).parse_args(arguments)
    for one in (TRANSFORMER, LSTM):
        publish(execute(one, args), args.output)


if __name__ == "__main__":
    main()
