"""The studies of the confirmation: arms and settings, fixed before the first run.

At scale `full` the paper's ResNet-18 of width 64, or its VGG, on CIFAR-10, a few minutes a run on
one GPU; at scale `digits` a ResNet-20 on the digits of the package, half a minute a run on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from experiments.confirm import bits, decay, half, text
from experiments.confirm.study_of import EPOCHS_20, SGD, StudyOf, full
from qtrain import NormRecipe, Recipe, bound_weights, deviations, models, recipes
from qtrain import weight_norm as with_weight_norm


def bounded(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A ResNet-18 with bounded weight norm, a fixed norm of every channel."""
    return bound_weights(_resnet(num_classes, in_channels, image_size), skip=["fc"])


def bounded_learned(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The same as the authors' code has it: sizes of channels learned, their norm fixed."""
    network = _resnet(num_classes, in_channels, image_size)
    return bound_weights(network, skip=["fc"], learned=True)


def weight_norm(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The same with weight norm."""
    return with_weight_norm(_resnet(num_classes, in_channels, image_size), skip=["fc"])


def _resnet(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return models.get("resnet18", **sizes)


def _own(function: str) -> dict[str, Any]:
    """An arm with a network of this file, and mean-only norms."""
    model = f"experiments.confirm.studies:{function}"
    return {"recipe": "fp32", "norm": "none", "model": model, "clip_grad": 5.0}


def _int8_range16() -> Recipe:
    norm = NormRecipe(deviation=deviations.range_(chunks=16))
    return replace(recipes.get("int8"), name="int8 range16", norm=norm)


#: L1 batch-norm's constant
_TIMES = {"l1": 1.0, "l1 quarter": 0.25, "l1 fourfold": 4.0}
STUDIES: dict[str, StudyOf] = {
    # in the order in which they are worth their time
    "int8": StudyOf(
        model="resnet18", arms={"fp32": "fp32", "int8": "int8"},
        config={**SGD, "epochs": 20, "batch_size": 512, "lr": 0.2}, runs=8, deviation=0.002,
    ),
    "range": StudyOf(
        model="resnet18",
        arms={
            "l2": "fp32",
            "range": full(deviations.range_()),
            "range16": full(deviations.range_(chunks=16)),
            "range16 code": full(deviations.range_(16, "code")),
            "range16 smooth": full(deviations.range_(chunks=16), statistics_gradient="l2"),
        },
        config=EPOCHS_20, runs=8, deviation=0.002,
    ),
    "recipe": StudyOf(
        model="resnet18",
        arms={
            "fp32": "fp32",
            "fp32 range16": full(deviations.range_(chunks=16)),
            "banner2018 code": recipes.banner2018(variant="code"),
        },
        config={**EPOCHS_20, "epochs": 15, "zero_init_residual": True}, runs=8, deviation=0.002,
    ),
    "deviations": StudyOf(
        model="resnet18",
        arms={
            "l2": "fp32",
            "l1": full(deviations.l1()),
            "top10": full(deviations.topk(10)),
            "ghost top10": full(deviations.topk(10, "code", smoothing=0.75)),
            "linf": full(deviations.linf()),
        },
        config=EPOCHS_20, runs=8, deviation=0.002,
    ),
    "bounded": StudyOf(
        model="resnet18",
        arms={
            "batch norm": "fp32",
            "bounded": _own("bounded"),
            "bounded learned": _own("bounded_learned"),
            "weight norm": _own("weight_norm"),
        },
        config=EPOCHS_20, runs=8, deviation=0.003, rates=(0.5, 1, 2),
    ),
    **decay.STUDIES,
    **half.STUDIES,
    **bits.STUDIES,
    "constant": StudyOf(
        model="resnet18",
        arms={name: full(deviations.l1(times=times)) for name, times in _TIMES.items()},
        config={**EPOCHS_20, "zero_init_residual": True}, runs=8, deviation=0.002,
    ),
    "cifar resnet": StudyOf(
        model="resnet20",
        arms={
            "fp32": "fp32",
            "fp32 range16": full(deviations.range_(chunks=16)),
            "int8 range16": {"recipe": _int8_range16()},
        },
        config={
            "epochs": 200, "batch_size": 128, "lr": 0.1, "schedule": "step", "warmup": 0.0,
            "milestones": [81, 122, 164], "weight_decay": 1e-4, "zero_init_residual": True,
        },
        runs=5, deviation=0.002,
    ),
    **text.STUDIES,
    "digits": StudyOf(
        model="resnet20", data="digits",
        arms={
            "fp32": "fp32",
            "int8": "int8",
            "fp32 range": {"recipe": "fp32", "norm": "range"},
            "int8 range": {"recipe": "int8", "norm": "range"},
        },
        config={**SGD, "epochs": 6, "batch_size": 32, "lr": 0.05, "threads": 1}, runs=12,
        deviation=0.005,
    ),
}  # fmt: skip
#: studies that a CPU has time for
ON_CPU = ("digits", "weight decay small", "text")
