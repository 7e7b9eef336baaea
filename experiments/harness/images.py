"""Classifying images: data, batches, loss and accuracy for the training loop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.harness import ranks
from experiments.harness.experiment import Job, options
from experiments.harness.loop import Curve, train
from qtrain import data, models
from qtrain.data import DataSet, FileSplit
from qtrain.models import BasicBlock, Bottleneck

Batch = tuple[Tensor, Tensor]
#: blocks a stage; those of three stages are the CIFAR section's, with padding shortcuts
RESNETS = {
    "resnet8": (1, 1, 1),
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet20": (3, 3, 3),
    "resnet50": (3, 4, 6, 3),
}


def parser(text: str, script: str) -> argparse.ArgumentParser:
    """The options of an experiment on images; text, script: its docstring and its file."""
    found = options(text, script, data=data.names("images"), default="imagefolder")
    found.add_argument("--workers", type=int, default=0, help="processes that decode image files")
    found.add_argument("--network", choices=tuple(RESNETS), help="in place of the setting's")
    return found


def load(job: Job) -> DataSet:
    """The run's data set, its training part cut to the setting's `images`, as many a class.

    SystemExit where it is missing or damaged.
    """
    args = job.args
    try:
        found = data.load(
            args.data, data_dir=args.data_dir, cache_dir=args.cache_dir, workers=args.workers
        )
    except data.DataError as error:
        sys.exit(str(error))
    if job.setting.images is not None:
        labels = found.train.labels
        each = job.setting.images // found.num_classes
        kept = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(found.num_classes)])
        part: Any = {"labels": labels[kept]}
        if isinstance(found.train, FileSplit):
            part["paths"] = [found.train.paths[i] for i in kept.tolist()]
        else:
            part["images"] = found.train.images[kept]
        found = replace(found, train=replace(found.train, **part))
    return found.to(args.device)


def resnet(job: Job, dataset: DataSet) -> nn.Module:
    """The setting's ResNet, initialised from the run's seed; up to 64 pixels with CIFAR's stem."""
    torch.manual_seed(job.seed)
    name, small = job.setting.network, dataset.sizes["image_size"] <= 64
    return models.ResNet(
        Bottleneck if name == "resnet50" else BasicBlock,
        RESNETS[name],
        num_classes=dataset.num_classes,
        in_channels=dataset.sizes["in_channels"],
        width=job.setting.width,
        stem="cifar" if small else "imagenet",
        shortcut="padding" if len(RESNETS[name]) == 3 else "projection",
    )


def groups(job: Job, model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay as the setting says; norms and biases, of one axis, do not."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": decayed, "weight_decay": job.setting.decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def fit(
    model: nn.Module,
    dataset: DataSet,
    job: Job,
    *,
    groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None = None,
    prepare: Callable[[nn.Module, torch.optim.Optimizer], dict[str, Any]] = lambda *_: {},
    loss_scale: float = 1.0,
) -> Curve:
    """Train a model by SGD as the job's setting says; of several ranks, each takes an equal part of
    every batch, with batch-norm statistics of its own.

    SystemExit where the batch cannot be cut so.

    groups    the optimizer's groups of the model, where all parameters are not one
    prepare   hangs on the model and its optimizer; gives `train` its hooks by name
    loss_scale   as `train` has it
    """
    setting = job.setting
    if setting.batch % ranks.count():
        sys.exit(f"batch: got {setting.batch} for {ranks.count()} ranks, need a multiple")
    model = model.to(job.args.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = [{"params": list(model.parameters())}] if groups is None else groups(model)
    optimizer = torch.optim.SGD(
        own, lr=setting.rate, momentum=setting.momentum, weight_decay=setting.decay
    )
    batches = data.Batches(
        dataset.train,
        batch_size=setting.batch // ranks.count(),
        seed=job.seed,
        drop_last=True,
        rank=ranks.rank(),
        world_size=ranks.count(),
    )
    hooks: dict[str, Any] = {
        "tick": job.tick, "loss_scale": loss_scale, **prepare(model, optimizer)
    }  # fmt: skip
    return train(
        ranks.parallel(model),
        optimizer,
        setting,
        batches=lambda epoch: replace(batches, epoch=epoch),
        loss=cross_entropy,
        evaluate=lambda _: {"accuracy": accuracy(model, dataset)},
        **hooks,
    )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Of a batch of images, moved to the model's device."""
    images, labels = moved(model, batch)
    return F.cross_entropy(model(images), labels)


def accuracy(model: nn.Module, dataset: DataSet) -> float:
    """Top-1 on the test images, in percent; each rank looks at its part of them."""
    ranks.share_buffers_(model)
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    for batch in data.Batches(
        dataset.test, batch_size=500, train=False, rank=ranks.rank(), world_size=ranks.count()
    ):
        images, labels = moved(model, batch)
        right += (model(images).argmax(1) == labels).sum()
    return 100 * int(ranks.total(right)) / len(dataset.test)


def moved(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    images, labels = batch
    return images.to(device, memory_format=torch.channels_last), labels.to(device)
