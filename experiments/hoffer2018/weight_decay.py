"""Experiment 1: what weight decay does to VGG-11, and three ways to have it without weight decay.

    python experiments/hoffer2018/weight_decay.py --data-dir PATH [--scale paper]

on            weight decay 5e-4
off           none, but on the classifier
correction    off, each convolution channel's step times ||w||^2 / ||w_on||^2 (the paper's eq. 4)
norms         off, the convolutions' rate constant, their channels' norms set to those of `on`,
              times sqrt(10) wherever the rate of `on` dropped by 10

||w_on|| are the norms at the end of the same epoch of `on`, from the same seed.  Writes
results/weight_decay-<scale>.json and .svg.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from loop import Setting, load, parser, save, train
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn

from qtrain import CorrectedSteps, NormHistory, NormSchedule, models
from qtrain.data import DataSet
from qtrain.intervals import mean_difference

ARMS = ("on", "off", "correction", "norms")
#: top-1 in %, read off the poster
PAPER = {"on": 90.5, "off": 89.2, "correction": 90.5, "norms": 90.2}
DECAY = 5e-4
SETTINGS = {
    "here": Setting(epochs=20, batch=128, rate=0.1, milestones=(5, 10, 15), images=5000),
    "paper": Setting(epochs=80, batch=128, rate=0.1, milestones=(20, 40, 60)),
}
WIDTHS = {"here": 16, "paper": 64}


def groups(decay: float) -> Callable[[nn.Module], list[dict[str, Any]]]:
    """Convolutions decay by `decay`, the classifier always, norms as the convolutions."""

    def of(model: nn.Module) -> list[dict[str, Any]]:
        convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        classifier = list(model.get_submodule("fc").parameters())
        held = {id(p) for p in (*convolutions, *classifier)}
        rest = [p for p in model.parameters() if id(p) not in held]
        return [
            {"name": "convolutions", "params": convolutions, "weight_decay": decay},
            {"name": "classifier", "params": classifier, "weight_decay": DECAY},
            {"name": "norms", "params": rest, "weight_decay": decay},
        ]

    return of


def run(arm: str, dataset: DataSet, args: Any, seed: int, history: NormHistory) -> list[float]:
    """Accuracies of one arm; `on` fills the history that the others use."""
    setting = SETTINGS[args.scale]
    torch.manual_seed(seed)
    model = models.vgg11(
        num_classes=dataset.num_classes,
        in_channels=dataset.sizes["in_channels"],
        width=WIDTHS[args.scale],
    ).to(args.device)

    def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        if arm == "correction":
            correction = CorrectedSteps(optimizer, model, history.at(0))
            return lambda epoch: correction.set_norms(history.at(epoch))
        schedule = NormSchedule(optimizer, model, history.at(0))

        def begin(epoch: int) -> None:
            schedule.set_norms(history.at(epoch))
            schedule.factor = math.sqrt(1 / setting.gamma) ** setting.drops(epoch)

        return begin

    return train(
        model,
        dataset,
        setting,
        seed,
        groups=groups(DECAY if arm == "on" else 0.0),
        prepare=prepare if arm in ("correction", "norms") else None,
        schedule=lambda name: arm != "norms" or name != "convolutions",
        after_epoch=history.record if arm == "on" else None,
        text=f"{arm}, seed {seed}",
    )


def plot(curves: dict[str, list[list[float]]], path: Any) -> None:
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm, runs in curves.items():
        mean = [100 * sum(values) / len(values) for values in zip(*runs, strict=True)]
        axes.plot(range(1, len(mean) + 1), mean, label=f"{arm} ({mean[-1]:.1f} %)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy in %, mean of the seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    args = parser(__doc__ or "").parse_args()
    dataset = load(args, SETTINGS[args.scale].images)
    curves: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        history = NormHistory(only=["features"])
        for arm in ARMS:
            curves[arm].append(run(arm, dataset, args, seed, history))
        save(args, "weight_decay", {"accuracy": curves, "paper": PAPER})
    plot(curves, args.output / f"weight_decay-{args.scale}.svg")
    final = {arm: [100 * values[-1] for values in runs] for arm, runs in curves.items()}
    rows = []
    for arm, values in final.items():
        gap = "" if arm == "on" or args.seeds < 2 else str(mean_difference(final["on"], values))
        rows.append([arm, f"{sum(values) / len(values):.2f}", gap, PAPER[arm]])
    headers = ["weight decay", "top-1 (%)", "against on, 95 % interval", "paper (%)"]
    print(tabulate(rows, headers))


if __name__ == "__main__":
    main()
