"""Two small tasks for any set of arms: a ResNet on digits, a Transformer of one layer on text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.harness import text
from experiments.harness.experiment import Experiment, Job, options
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import plot_arms
from experiments.harness.runs import execute
from qtrain import models
from qtrain.data import DataSet

Run = Callable[[Job], Curve]


def tasks(
    arms: Mapping[str, str], on_digits: tuple[Run, Setting], on_text: tuple[Run, Setting]
) -> dict[str, Experiment]:
    """Both tasks as experiments, by name: how an arm is run, and its setting.  The metrics are the
    test accuracy in percent and the loss in nats."""
    known = ("digits", "accuracy", on_digits), ("text", "loss", on_text)
    return {
        name: Experiment(
            name=name, arms=arms, reference="fp32", metric=metric, paper={},
            published="not this task", settings={"here": setting}, run=run,
        )
        for name, metric, (run, setting) in known
    }  # fmt: skip


def resnet(**more: Any) -> Setting:
    """Of a ResNet of three stages on digits, but for the rate and when it falls."""
    return Setting(network="resnet8", width=16, epochs=8, every=8, batch=32, decay=5e-4, **more)


def transformer(*, epochs: int, **more: Any) -> Setting:
    """Of a Transformer of one layer on a part of a text, but for how long and how it falls."""
    return Setting(
        network="transformer", width=64, epochs=epochs, every=epochs, batch=8, rate=4e-3, decay=0.1,
        clip=1.0, more={"context": 64, "depth": 1, "heads": 4, "train": 300_000, "test": 30_000},
        **more,
    )  # fmt: skip


def passage(job: Job) -> DataSet:
    """The part of the text that a `transformer` setting has."""
    more: dict[str, Any] = dict(job.setting.more or {})
    dataset = text.load(job)
    parts = {
        name: replace(split, tokens=split.tokens[: more[name]])
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    return replace(dataset, **parts)


def characters(job: Job) -> tuple[nn.Module, DataSet]:
    """The Transformer of a `transformer` setting, and its part of the text."""
    dataset, more = passage(job), dict(job.setting.more or {})
    torch.manual_seed(job.seed)
    model: nn.Module = models.CharTransformer(
        **dataset.sizes, width=job.setting.width, depth=more["depth"], heads=more["heads"]
    )
    return model, dataset


def main(
    experiments: Mapping[str, Experiment], doc: str, script: str, arguments: list[str] | None
) -> Path:
    """Run what a command line asks of them, and draw every run of each arm beside the results; doc,
    script: the docstring and the file.  -> the results' folder."""
    args = options(doc, script, data=[*experiments], default="digits").parse_args(arguments)
    args.workers = 0
    result = execute(experiments[args.data], args)
    plot_arms(result, args.output / f"{args.data}-{args.scale}.svg")
    return Path(args.output)
