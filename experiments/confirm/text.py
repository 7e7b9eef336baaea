"""Text: a Transformer in 8 bits, attention too, and under Lp weight norm.

The papers translate; here the same network's kin predict the next character of any text.  Under
weight norm, weights start as N(0, 1 / fan-in), so that those that are bounded have a size to keep:
every output channel of every linear layer but the last keeps the mean of the initial p-norms.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from experiments.confirm.study_of import StudyOf
from qtrain import bound_weights, data, models
from qtrain.data import DataSet

ORDERS = {"l2": 2.0, "l1": 1.0, "linf": math.inf}


def large(num_classes: int, context: int) -> nn.Module:
    """Six blocks of width 512."""
    sizes = {"num_classes": num_classes, "context": context}
    return models.CharTransformer(**sizes, width=512, depth=6, heads=8)


def small(num_classes: int, context: int) -> nn.Module:
    """Two blocks of width 64."""
    sizes = {"num_classes": num_classes, "context": context}
    return models.CharTransformer(**sizes, width=64, depth=2, heads=4)


def bounded(num_classes: int, context: int, *, order: str | None = None) -> nn.Module:
    """The large one, initialised for weight norm, and bounded where an order says so."""
    model = large(num_classes, context)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model if order is None else bound_weights(model, p=ORDERS[order], skip=["fc"])


#: what references name: `networks.l1`
networks = SimpleNamespace(
    plain=bounded, **{order: partial(bounded, order=order) for order in ORDERS}
)


def passage(data_dir: str, context: int) -> DataSet:
    """The first 300,000 characters of a text to learn from, 30,000 to be tested on."""
    found = data.load("text", data_dir=data_dir, context=context)
    parts: dict[str, Any] = {"train": (found.train, 300_000), "test": (found.test, 30_000)}
    cut = {k: replace(split, tokens=split.tokens[:n]) for k, (split, n) in parts.items()}
    return replace(found, **cut)


_ADAM = {"optimizer": "adamw", "weight_decay": 0.1, "clip_grad": 1.0}
_LARGE = {
    **_ADAM, "epochs": 40, "batch_size": 64, "lr": 5e-4, "schedule": "step", "warmup": 2.0,
    "milestones": [20, 30], "context": 256,
}  # fmt: skip


def _order(name: str) -> dict[str, Any]:
    """A bounded weight's size has no effect, so that it does not decay."""
    decay = {} if name == "plain" else {"weight_decay": 0.0}
    return {"recipe": "fp32", "model": f"experiments.confirm.text:networks.{name}", **decay}


STUDIES = {
    "transformer": StudyOf(
        model="experiments.confirm.text:large", data="text", metric="loss",
        arms={"fp32": "fp32", "int8": "int8"}, config=_LARGE, runs=5, deviation=0.01,
    ),
    "lp": StudyOf(
        model="experiments.confirm.text:networks.l2", data="text", metric="loss",
        arms={name: _order(name) for name in ("l2", "plain", "l1", "linf")},
        config=_LARGE, runs=5, deviation=0.02,
    ),
    "text": StudyOf(
        model="experiments.confirm.text:small", data="experiments.confirm.text:passage",
        metric="loss", arms={"fp32": "fp32", "int8": "int8"}, rates=(0.5, 1, 2),
        config={
            **_ADAM, "epochs": 3, "batch_size": 16, "lr": 4e-3, "schedule": "cosine",
            "context": 64, "threads": 1,
        },
        runs=6, deviation=0.01,
    ),
}  # fmt: skip
