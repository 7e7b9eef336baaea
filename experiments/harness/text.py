"""Modelling text: data, loss and evaluation for the training loop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.harness.experiment import Job, options
from experiments.harness.loop import Curve, train
from qtrain import data
from qtrain.data import DataSet

Batch = tuple[Tensor, Tensor]


def parser(text: str, script: str) -> argparse.ArgumentParser:
    """The options of an experiment on text; text, script: its docstring and its file."""
    return options(text, script, data=["text"], default="text")


def load(job: Job) -> DataSet:
    """The run's text, in windows of the setting's `context`; SystemExit where it is missing."""
    more: dict[str, Any] = dict(job.setting.more or {})
    try:
        found = data.load("text", data_dir=job.args.data_dir, context=more["context"])
    except data.DataError as error:
        sys.exit(str(error))
    return found.to(job.args.device)


def fit(
    model: nn.Module,
    dataset: DataSet,
    job: Job,
    *,
    decay: float,
    evaluate: Callable[[nn.Module, DataSet], Mapping[str, float]],
    prepare: Callable[[nn.Module, torch.optim.Optimizer], object] = lambda *_: None,
) -> Curve:
    """Train a model by AdamW as the job's setting says; `decay` is that of weights, norms and
    biases do not decay; prepare hangs on the model and its optimizer."""
    setting = job.setting
    model = model.to(job.args.device)
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}],
        lr=setting.rate,
        betas=(setting.momentum, 0.99),
    )
    prepare(model, optimizer)
    batches = data.Batches(dataset.train, batch_size=setting.batch, seed=job.seed, drop_last=True)
    return train(
        model,
        optimizer,
        setting,
        batches=lambda epoch: replace(batches, epoch=epoch),
        loss=loss,
        evaluate=lambda model: evaluate(model, dataset),
        tick=job.tick,
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats a character."""
    tokens, following = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def evaluated(model: nn.Module, dataset: DataSet) -> dict[str, float]:
    """The loss over the whole test text, and the accuracy of its tokens in percent."""
    total, right, count = 0.0, 0, 0
    for tokens, following in data.Batches(dataset.test, batch_size=64, train=False):
        logits, truth = model(tokens).flatten(0, 1), following.flatten()
        total += float(F.cross_entropy(logits, truth)) * truth.numel()
        right += int((logits.argmax(1) == truth).sum())
        count += truth.numel()
    return {"loss": total / count, "accuracy": 100 * right / count}
