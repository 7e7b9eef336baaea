"""What sums of few bits err, layer by layer.

    python -m experiments.accumulators.error

A ResNet-20 of three stages, trained for three epochs on digits in full precision, is taken through
one batch, forward and backward, under accumulators such as `accuracy` trains with: the SQNR of
their sums alone, against the exact sums of the same elements.  Writes results/error.json and .svg.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional as F

from experiments.accumulators.accuracy import recipe
from qtrain import data, inspect, models, quantize

RESULTS = Path(__file__).parent / "results"
PRODUCTS = ("output", "grad_input", "grad_weight")
FAMILIES = {
    "int8": ((20, 18, 16, 14, 12), "int8-{}", "bits of the integer accumulator"),
    "fp8": ((10, 7, 5, 4, 3), "fp8-m{}", "mantissa bits of the accumulator"),
}


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
    """A line a product, the median of layers, all within the band."""
    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, family in zip(figure.subplots(1, 2), FAMILIES, strict=True):
        _errors(axes, family, errors)
    with rc_context({"svg.hashsalt": "qtrain"}):
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


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    errors = measured()
    (RESULTS / "error.json").write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
    draw(errors, RESULTS / "error.svg")


if __name__ == "__main__":
    main()
