"""What sums of few bits err, layer by layer, beside what training with them costs.

    python -m experiments.accumulators.error

A ResNet-20 of three stages, trained for three epochs on digits in full precision, is taken through
one batch, forward and backward, under each accumulator of `accuracy`: the SQNR of its sums alone,
against the exact sums of the same elements.  Writes results/error.json, and, with the accuracies
whose results are there, results/accumulators.svg.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional as F

from experiments.accumulators.accuracy import INTEGERS, MANTISSAS, recipe
from experiments.harness.report import finals
from qtrain import data, inspect, models, quantize

RESULTS = Path(__file__).parent / "results"
PRODUCTS = ("output", "grad_input", "grad_weight")
FAMILIES = {
    "int8": (INTEGERS, "int8-{}", "bits of the integer accumulator"),
    "fp8": (MANTISSAS, "fp8-m{}", "mantissa bits of the accumulator"),
}
TASKS = {"digits": "digits", "imagefolder": "CIFAR-10, 1,000 images"}


def measured() -> dict[str, dict[str, list[float]]]:
    """{arm: {product: the SQNR in dB of each layer's sums}}, 200 of those without error."""
    torch.manual_seed(0)
    digits = data.load("digits")
    model = models.get("resnet20", num_classes=10, in_channels=1, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        for images, labels in data.Batches(digits.train, batch_size=32, seed=0, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    batch = next(iter(data.Batches(digits.train, batch_size=32, seed=0, epoch=3)))
    found: dict[str, dict[str, list[float]]] = {}
    for widths, name, _ in FAMILIES.values():
        for width in widths:
            arm = name.format(width)
            report = inspect(quantize(model, recipe=recipe(arm)), *batch)
            found[arm] = {
                product: [
                    round(min(row.sqnr_db, 200.0), 2)
                    for row in report.rows
                    if row.role == f"{product} (accumulator)"
                ]
                for product in PRODUCTS
            }
            print(arm, {p: round(statistics.median(v), 1) for p, v in found[arm].items()})
    return found


def draw(errors: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Above: the SQNR of sums, a line a product, the median of layers, all within the band.  Below:
    accuracies, a dot a seed."""
    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for column, family in enumerate(FAMILIES):
        _errors(axes[0][column], family, errors)
        _accuracies(axes[1][column], family)
    figure.savefig(path, metadata={"Date": None})


def _errors(axes: Axes, family: str, errors: dict[str, dict[str, list[float]]]) -> None:
    widths, name, label = FAMILIES[family]
    for i, product in enumerate(PRODUCTS):
        each = [errors[name.format(width)][product] for width in widths]
        axes.plot(widths, list(map(statistics.median, each)), "o-", color=f"C{i}", label=product)
        axes.fill_between(
            widths, list(map(min, each)), list(map(max, each)), color=f"C{i}", alpha=0.15
        )
    axes.set(title=f"{family}: error of the sums alone", xlabel=label, ylabel="SQNR (dB)")
    axes.set_xticks(widths)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _accuracies(axes: Axes, family: str) -> None:
    widths, name, label = FAMILIES[family]
    last = max(widths) + (2 if family == "int8" else 3)
    for i, (task, text) in enumerate(TASKS.items()):
        path = RESULTS / f"{task}-here.json"
        if not path.exists():
            continue
        result: Any = json.loads(path.read_text(encoding="utf-8"))
        places = [*((w, name.format(w)) for w in widths), (last, family)]
        runs = [(x, v) for x, arm in places for v in finals(result, arm).values()]
        runs = [(x, v) for x, v in runs if math.isfinite(v)]
        means = {x: statistics.fmean(v for at, v in runs if at == x) for x, _ in runs}
        axes.scatter(*zip(*runs, strict=True), s=14, color=f"C{i}", alpha=0.5)
        axes.plot(sorted(means), [means[x] for x in sorted(means)], color=f"C{i}", label=text)
        full = statistics.fmean(finals(result, "fp32").values())
        axes.axhline(full, color=f"C{i}", linestyle=":", linewidth=1)
    axes.set(title=f"{family}: trained with them (dotted: fp32)", xlabel=label)
    axes.set_ylabel("test accuracy (%)")
    axes.set_xticks([*widths, last], [*map(str, widths), "exact" if family == "int8" else "fp32"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    errors = measured()
    (RESULTS / "error.json").write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
    draw(errors, RESULTS / "accumulators.svg")


if __name__ == "__main__":
    main()
