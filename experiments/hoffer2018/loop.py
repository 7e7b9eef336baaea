"""What the experiments share: their options, data, and a plain training loop with callbacks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from qtrain import data
from qtrain.data import DataSet
from qtrain.environment import environment
from qtrain.files import write_atomically

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a network is trained by SGD.

    images       of the training set, the first of each class alike; None: all
    milestones   epochs at which the rate drops by `gamma`
    clip         largest gradient norm, or None
    """

    epochs: int
    batch: int
    rate: float
    milestones: Sequence[int]
    gamma: float = 0.1
    momentum: float = 0.9
    decay: float = 0.0
    clip: float | None = None
    images: int | None = None

    def drops(self, epoch: int) -> int:
        """How often the rate has dropped by then."""
        return sum(epoch >= milestone for milestone in self.milestones)


def parser(text: str) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    found = argparse.ArgumentParser(description=text.splitlines()[0])
    found.add_argument("--scale", choices=("here", "paper"), default="here")
    found.add_argument("--data", default="imagefolder", choices=data.names("images"))
    found.add_argument("--data-dir", help="folder of the data set")
    found.add_argument("--cache-dir", help="folder for decoded images")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--output", type=Path, default=RESULTS)
    return found


def load(args: argparse.Namespace, images: int | None) -> DataSet:
    """The data set, its training part cut to `images`, a tenth of CIFAR-10's from each class."""
    found = data.load(args.data, data_dir=args.data_dir, cache_dir=args.cache_dir)
    if images is not None:
        labels = found.train.labels
        each = images // found.num_classes
        kept = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(found.num_classes)])
        part = replace(found.train, images=found.train.images[kept], labels=labels[kept])
        found = replace(found, train=part)
    return found.to(args.device)


def train(
    model: nn.Module,
    dataset: DataSet,
    setting: Setting,
    seed: int,
    *,
    groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
    prepare: Callable[[nn.Module, torch.optim.Optimizer], Callable[[int], None]] | None = None,
    schedule: Callable[[str], bool] = lambda group: True,
    after_epoch: Callable[[nn.Module], None] | None = None,
    text: str = "",
) -> list[float]:
    """Train in place; test accuracy after every epoch.

    groups       the optimizer's groups of a model; each may have a "name"
    prepare      hangs on the model and its optimizer; what it returns is called with each epoch
    schedule     whether a group of that name follows the milestones
    """
    device = next(model.parameters()).device
    own = [{"params": list(model.parameters())}] if groups is None else groups(model)
    optimizer = torch.optim.SGD(
        own, lr=setting.rate, momentum=setting.momentum, weight_decay=setting.decay
    )
    begin = None if prepare is None else prepare(model, optimizer)
    batches = data.Batches(dataset.train, batch_size=setting.batch, seed=seed, drop_last=True)
    found = []
    with tqdm(total=setting.epochs * batches.total, desc=text, disable=None, leave=False) as bar:
        for epoch in range(setting.epochs):
            for group in optimizer.param_groups:
                follows = schedule(group.get("name", ""))
                group["lr"] = setting.rate * (
                    setting.gamma ** setting.drops(epoch) if follows else 1
                )
            if begin is not None:
                begin(epoch)
            model.train()
            for images, labels in replace(batches, epoch=epoch):
                optimizer.zero_grad(set_to_none=True)
                images = images.to(device, memory_format=torch.channels_last)
                F.cross_entropy(model(images), labels.to(device)).backward()
                if setting.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
                optimizer.step()
                bar.update()
            found.append(accuracy(model, dataset))
            if after_epoch is not None:
                after_epoch(model)
    return found


@torch.no_grad()
def accuracy(model: nn.Module, dataset: DataSet) -> float:
    """On the test images."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    for images, labels in data.Batches(dataset.test, batch_size=500, train=False):
        output = model(images.to(device, memory_format=torch.channels_last))
        right += int((output.argmax(1) == labels.to(device)).sum())
    return right / len(dataset.test)


def save(args: argparse.Namespace, name: str, result: dict[str, Any]) -> None:
    """results/<name>-<scale>.json, with the options and the machine."""
    args.output.mkdir(parents=True, exist_ok=True)
    options = {key: str(value) for key, value in vars(args).items() if not key.endswith("_dir")}
    whole = {"options": options, "environment": environment(torch.device(args.device)), **result}
    text = (json.dumps(whole, indent=1) + "\n").encode()
    write_atomically(args.output / f"{name}-{args.scale}.json", lambda file: file.write(text))
