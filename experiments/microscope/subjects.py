"""The small networks that the microscope looks at, their data, and steps of their training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qtrain import data, models
from qtrain.data import DataSet

Batch = tuple[Tensor, Tensor]
CONTEXT, CHARACTERS = 32, 200_000  # of a text: of a window, and how many of the beginning


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) for (N, 1, 8, 8): 16 patches,
    learned positions, pre-norm blocks, the mean of the tokens."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), False)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.fc(self.blocks(tokens).mean(1))
        return logits


def separable() -> nn.Module:
    """Depthwise and pointwise convolutions (Howard et al. 2017, arXiv 1704.04861)."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for inner, outer, stride in ((8, 16, 2), (16, 16, 1), (16, 32, 2)):
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)]
        layers += [nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, outer, 1, bias=False)]
        layers += [nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


_IMAGES = {"num_classes": 10, "in_channels": 1}
NETWORKS = {
    "resnet20": lambda _: models.resnet20(**_IMAGES, width=4),
    "vgg11": lambda _: models.vgg11(**_IMAGES, width=4),
    "vit": lambda _: ViT(),
    "chartransformer": lambda sizes: models.CharTransformer(**sizes, width=32, depth=2, heads=4),
    "resnet18": lambda _: models.resnet18(**_IMAGES, stem="cifar", width=4),
    "separable": lambda _: separable(),
    "mlp": lambda _: models.mlp(**_IMAGES, image_size=8),
    "charlstm": lambda sizes: models.CharLSTM(num_classes=sizes["num_classes"], width=32),
}


class Subject(NamedTuple):
    """A network of a seed, its data set and batch size."""

    network: nn.Module
    dataset: DataSet
    batch: int

    def batches(self, seed: int, count: int) -> list[Batch]:
        """So many training batches, in the order of a seed."""
        found: list[Batch] = []
        epoch = 0
        while len(found) < count:
            split = self.dataset.train
            epochs = data.Batches(
                split, batch_size=self.batch, seed=seed, epoch=epoch, drop_last=True
            )
            for batch in epochs:
                found.append(batch)
                if len(found) == count:
                    break
            epoch += 1
        return found

    def tested(self, model: nn.Module) -> dict[str, float]:
        """Accuracy in percent and loss in nats over whole batches of the test part."""
        model.eval()
        right, loss, count, batches = 0, 0.0, 0, 0
        with torch.no_grad():
            for x, y in data.Batches(self.dataset.test, batch_size=self.batch, train=False):
                if len(x) < self.batch or batches == 40:
                    break
                logits = model(x)
                right += int((logits.argmax(-1) == y).sum())
                loss += float(error(logits, y)) * y.numel()
                count, batches = count + y.numel(), batches + 1
        model.train()
        return {"accuracy": 100 * right / count, "loss": loss / count}


def subject(name: str, seed: int, data_dir: Path) -> Subject:
    """A network of NETWORKS by name; networks of text take theirs from `data_dir`."""
    if name.startswith("char"):
        dataset = data.load("text", data_dir=data_dir, context=CONTEXT)
        for part in (dataset.train, dataset.test):
            object.__setattr__(part, "tokens", part.tokens[:CHARACTERS])
    else:
        dataset = data.load("digits")
    torch.manual_seed(seed)
    batch = 16 if name.startswith("char") else 32
    return Subject(NETWORKS[name](dataset.sizes), dataset, batch)


def error(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy in nats."""
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


def train(
    model: nn.Module, batches: Iterable[Batch], optimizer: torch.optim.Optimizer
) -> list[float]:
    """The loss of every step."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = error(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def usual_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum for convolutions, AdamW for Transformers."""
    if name in ("vit", "chartransformer"):
        return torch.optim.AdamW(model.parameters(), lr=2e-3)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
