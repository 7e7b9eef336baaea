"""Batch-norm in FP16 with the L2 and the L1 deviation, at three scales of its input.

Every operation of the norms is rounded to FP16; their sums run in FP32 or in FP16, where partial
sums of a mean are halved, so that a long sum does not leave FP16 where its mean would not.  At 2^k
the convolutions' initial weights, and with them every norm's input, are 2^k times as large, their
rate 4^k times, their decay 4^-k times, and the norms' eps with the statistic it is added to: in
exact arithmetic the same training.  FP16 gradients need a loss times 1024.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from experiments.confirm.study_of import EPOCHS_10, StudyOf, full
from qtrain import Arithmetic, Recipe, TrainConfig, deviations, models
from quantizers import fp16, fp32

SCALES = (0, 4, 8)
DEVIATIONS = {"l2": deviations.l2(), "l1": deviations.l1()}
EPS = 1e-5


def network(
    num_classes: int, in_channels: int, image_size: int, *, k: int = 0, deviation: str = "l2"
) -> nn.Module:
    """A ResNet-18 with convolutions of 2^k times the size."""
    model = models.get(
        "resnet18", num_classes=num_classes, in_channels=in_channels, image_size=image_size,
        zero_init_residual=True,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.mul_(2.0**k)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = EPS * (4.0**k if deviation == "l2" else 2.0**k)
    return model


def groups(model: nn.Module, config: TrainConfig, *, k: int = 0) -> torch.optim.Optimizer:
    """The rates and decays under which scaled convolutions train as unscaled ones do."""
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    classifier = list(model.get_submodule("fc").parameters())
    held = {id(p) for p in (*convolutions, *classifier)}
    norms = [p for p in model.parameters() if id(p) not in held]
    scaled = {"lr": config.lr * 4.0**k, "weight_decay": config.weight_decay / 4.0**k}
    return torch.optim.SGD(
        [
            {"params": convolutions, **scaled},
            {"params": classifier, "weight_decay": config.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=config.lr,
        momentum=config.momentum,
    )


#: what references name: `networks.l1_4`, `optimizers.at_4`
networks = SimpleNamespace(
    **{f"{d}_{k}": partial(network, k=k, deviation=d) for d in DEVIATIONS for k in SCALES}
)
optimizers = SimpleNamespace(**{f"at_{k}": partial(groups, k=k) for k in SCALES})


def _recipe(deviation: str, sums: str) -> Recipe:
    halved = sums == "fp16"
    arithmetic = Arithmetic(
        format=fp16, accumulator=fp16 if halved else fp32, sums="halved" if halved else "plain"
    )
    return full(DEVIATIONS[deviation], arithmetic=arithmetic)


def _arm(deviation: str, k: int) -> dict[str, object]:
    here = "experiments.confirm.half"
    return {
        "model": f"{here}:networks.{deviation}_{k}", "optimizer": f"{here}:optimizers.at_{k}",
    }  # fmt: skip


STUDIES = {
    "half": StudyOf(
        model="experiments.confirm.half:networks.l2_0",
        arms={
            "l2 fp32": {"recipe": "fp32", **_arm("l2", 0)},
            **{
                f"{d} {sums} sums 2^{k}": {"recipe": _recipe(d, sums), **_arm(d, k)}
                for d in DEVIATIONS
                for sums in ("fp32", "fp16")
                for k in SCALES
            },
        },
        config={
            **{n: v for n, v in EPOCHS_10.items() if n not in ("zero_init_residual", "optimizer")},
            "epochs": 5, "loss_scale": 1024.0,
        },
        runs=3, deviation=0.01,
    ),
}  # fmt: skip
