"""Experiment 10: bits, 2 to 8, against the angle of quantized tensors and the final accuracy.

    python -m experiments.banner2018.bits --data-dir PATH [--scale paper]

fp32          full precision, torch's batch-norm
fp32 range    full precision, range batch-norm
M bits        the paper's quantizers at M bits in all layers, range batch-norm in full precision;
              grad_weight takes the gradient in full precision, as the paper's code does

Cosines are of a tensor and the same tensor quantized, by `qtrain.inspect` at the end of every
epoch, on the first 64 training images, in training mode:

cosine_forward    mean over the layers and over their two forward operands, input and weight
cosine_backward   mean over the layers of the gradient of their output that enters grad_input, the
                  paper's layer gradient (the first layer, which needs none, has no such row)

They are local: what one layer's rounding turns its own tensors by.

Writes results/bits-<scale>.json and .svg: both cosines and the accuracy against the bits, the
paper's beside ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import finals, table
from experiments.harness.runs import execute
from qtrain import GradWeight, NormRecipe, Recipe, deviations, inspect, quantize, recipes
from qtrain.data import Batches, DataSet

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
COLUMNS = ("cosine_forward", "cosine_backward")
#: read off the poster, by bits; the bound as drawn, its formula's at M = bits - 1 (angle.py)
PAPER = {
    "cosine_forward": {2: 0.82, 4: 0.99, 6: 1.0, 7: 1.0, 8: 1.0},
    "cosine_backward": {2: 0.20, 4: 0.74, 6: 0.88, 7: 0.95, 8: 0.982},
    "bound": {2: 0.63, 4: 0.83, 6: 0.944, 7: 0.969, 8: 0.984},
    "accuracy": {2: 18.0, 4: 83.0, 6: 89.5, 7: 89.4, 8: 89.1},
}
NORM = NormRecipe(deviation=deviations.range_())


def recipe(bits: int) -> Recipe:
    """The arm of so many bits."""
    return replace(recipes.banner2018(bits), grad_weight=GradWeight(), norm=NORM)


def cosines(model: nn.Module, batch: images.Batch) -> dict[str, dict[str, float]]:
    """{layer: {role: cosine}} of one batch's operands."""
    found: dict[str, dict[str, float]] = {}
    for row in inspect(model, *images.moved(model, batch)).rows:
        if row.role in ("input", "weight", "grad_output (grad_input)"):
            found.setdefault(row.layer, {})[row.role] = float(f"{row.cosine:.6g}")
    return found


def means(layers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The two figures of all layers."""
    backward = [cosine for own in layers.values() for role, cosine in own.items() if "grad" in role]
    forward = [
        cosine for own in layers.values() for role, cosine in own.items() if "grad" not in role
    ]
    return dict(zip(COLUMNS, map(statistics.fmean, (forward, backward)), strict=True))


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    if job.arm == "fp32":
        return fit(model, dataset, job)
    if job.arm == "fp32 range":
        return fit(quantize(model, recipe="fp32", norm=NORM), dataset, job)
    model = quantize(model, recipe=recipe(int(job.arm.partition(" ")[0])), seed=job.seed)
    batch = next(iter(Batches(dataset.train, batch_size=64, seed=job.seed, augment=False)))
    measured: list[dict[str, dict[str, float]]] = []

    def prepare(model: nn.Module, _: torch.optim.Optimizer) -> dict[str, Any]:
        return {"after_epoch": lambda epoch: measured.append(cosines(model, batch))}

    curve = fit(model, dataset, job, prepare=prepare)
    for row, layers in zip(curve.epochs, measured, strict=False):  # a failed epoch has no row
        row.update({name: float(f"{value:.6g}") for name, value in means(layers).items()})
    return replace(curve, more={"cosines": measured[-1]} if measured else None)


def fit(model: nn.Module, dataset: DataSet, job: Job, **hooks: Any) -> Curve:
    """Weights decay, norms and biases do not."""
    groups = lambda model: images.groups(job, model)  # noqa: E731
    return images.fit(model, dataset, job, groups=groups, **hooks)


EXPERIMENT = Experiment(
    name="bits",
    arms={
        "fp32": "full precision",
        "fp32 range": "full precision, range batch-norm",
        **{f"{bits} bits": "the paper's quantizers" for bits in WIDTHS},
    },
    reference="fp32 range",
    paper={f"{bits} bits": value for bits, value in PAPER["accuracy"].items()},
    published="CIFAR-10, top-1 in %, read off the poster",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=4000, epochs=10, milestones=(6, 8), every=5,
            batch=64, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet20", width=16, epochs=164, milestones=(81, 122), batch=128, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Cosines and accuracy against the bits, the paper's dashed, to SVG."""
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    angles, accuracy = figure.subplots(1, 2)
    for i, column in enumerate(COLUMNS):
        _line(angles, result, column, f"C{i}", column.partition("_")[2])
    _line(accuracy, result, "accuracy", "C2", "")
    for i, arm in enumerate(("fp32", "fp32 range")):
        values = finals(result, arm).values()
        if values:
            style: dict[str, Any] = {"color": "grey", "linestyle": (":", "-.")[i]}
            accuracy.axhline(statistics.fmean(values), label=f"ours, {arm}", **style)
    angles.set_ylabel("cosine of a tensor and itself quantized")
    accuracy.set_ylabel("top-1 in %")
    for axes in (angles, accuracy):
        axes.set_xlabel("bits of weights, inputs and layer gradients")
        axes.set_xticks(WIDTHS)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def _line(axes: Axes, result: Mapping[str, Any], column: str, colour: str, text: str) -> None:
    points = {bits: list(finals(result, f"{bits} bits", column).values()) for bits in WIDTHS}
    points = {bits: values for bits, values in points.items() if values}
    for bits, values in points.items():
        axes.scatter([bits] * len(values), values, s=8, color=colour, alpha=0.5)
    means = [statistics.fmean(values) for values in points.values()]
    ours, papers = (f"{who}, {text}" if text else who for who in ("ours", "the paper"))
    axes.plot(list(points), means, color=colour, marker="o", label=ours)
    axes.plot(*zip(*PAPER[column].items(), strict=True), "s--", color=colour, alpha=0.6, mfc="none",
              label=papers)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    result = execute(EXPERIMENT, args)
    print(table(result))
    plot(result, args.output / f"bits-{args.scale}.svg")


if __name__ == "__main__":
    main()
