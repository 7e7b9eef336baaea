"""Experiment 9: a Transformer in 8 bits against full precision.

    python -m experiments.banner2018.transformer --data-dir PATH [--scale paper]

fp32     full precision
int8     the house recipe in every linear layer and in both products of attention
linear   the same, attention in full precision

The paper translates; here a small kin of its network predicts the next character of any text.  The
softmax, LayerNorm, the embeddings and residual sums stay in full precision.

Writes results/transformer-<scale>.json and .svg: the test text's token accuracy in percent and its
perplexity, exp of the mean cross-entropy, a character.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from experiments.harness import text
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import publish
from experiments.harness.runs import execute
from qtrain import models, quantize
from qtrain.data import DataSet

#: names of the modules that hold attention's two products
ATTENTION = "blocks.*.attention"


def network(job: Job, dataset: DataSet) -> nn.Module:
    """The arm's model under the run's seed."""
    more: dict[str, Any] = dict(job.setting.more or {})
    torch.manual_seed(job.seed)
    model: nn.Module = models.CharTransformer(
        **dataset.sizes, width=job.setting.width, depth=more["depth"], heads=more["heads"]
    )
    if job.arm != "fp32":
        overrides = {ATTENTION: None} if job.arm == "linear" else None
        model = quantize(model, recipe="int8", overrides=overrides, seed=job.seed)
    return model


def run(job: Job) -> Curve:
    """One arm."""
    dataset = text.load(job)
    model = network(job, dataset)
    return text.fit(model, dataset, job, decay=job.setting.decay, evaluate=evaluate)


def evaluate(model: nn.Module, dataset: DataSet) -> dict[str, float]:
    """Token accuracy in percent, and perplexity."""
    found = text.evaluated(model, dataset)
    return {"accuracy": found["accuracy"], "perplexity": math.exp(found["loss"])}


EXPERIMENT = Experiment(
    name="transformer",
    arms={
        "fp32": "full precision",
        "int8": "8 bits, attention too",
        "linear": "8 bits, attention in full precision",
    },
    reference="fp32",
    paper={"fp32": 64.1, "int8": 63.9},
    published="translation, token accuracy in %, read off the poster",
    settings={
        "here": Setting(
            network="transformer", width=64, epochs=3, milestones=(2,), batch=16, rate=4e-3,
            decay=0.1, clip=1.0, more={"context": 64, "depth": 2, "heads": 4},
        ),
        "paper": Setting(
            network="transformer", width=512, epochs=40, milestones=(20, 30), warmup=2, batch=64,
            rate=5e-4, decay=0.1, clip=1.0, more={"context": 256, "depth": 6, "heads": 8},
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = text.parser(__doc__ or "", __file__).parse_args(arguments)
    publish(
        execute(EXPERIMENT, args),
        args.output,
        beside="perplexity",
        label="perplexity, mean of the seeds",
        scale="linear",
    )


if __name__ == "__main__":
    main()
