"""The angle between a tensor and itself quantized, against the paper's theory.

    python -m experiments.banner2018.angle --data-dir PATH [--scale paper]

The theory is about N Gaussian elements and M bits, rounded to the nearest multiple of a step of
max|x| / 2^M:  cos >= 2^M / (2^M + sqrt(ln N / 6)), the paper's bound, and, where the error is
orthogonal to x, cos = 1 / sqrt(1 + ln N / (6 * 4^M)), its tight form.  Such steps need M bits and a
sign: int8 is M = 7.

gaussian    vectors of 10^2 to 10^6 Gaussian elements
weights     of the convolutions and the classifier of a network trained in full precision with
            range batch-norm
inputs      of those layers, on the first 64 training images, in training mode
gradients   the gradients of those layers' outputs on the same images (the paper's layer gradients)

A run's columns "cosine M", "bound M" and "tight M" are means over its tensors (over the lengths of
the Gaussian ones).

Writes results/angle-<scale>.json and .svg.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.runs import execute
from qtrain import NormRecipe, deviations, quantize
from qtrain.data import Batches

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
NORM = NormRecipe(deviation=deviations.range_())


def bound(bits: int, count: int) -> float:
    """The cosine of `count` elements is at least this."""
    return float(2**bits / (2**bits + math.sqrt(math.log(count) / 6)))


def tight(bits: int, count: int) -> float:
    """What it is on average."""
    return 1 / math.sqrt(1 + math.log(count) / (6 * 4**bits))


def cosine(x: Tensor, bits: int) -> float:
    """Of a tensor and itself rounded as the theory has it."""
    x = x.detach().double().flatten()
    step = x.abs().max() / 2**bits
    return float(torch.cosine_similarity(x, (x / step).round() * step, dim=0))


def gaussians(seed: int) -> list[tuple[str, Tensor]]:
    """Vectors by name, so many of each length that all together hold 10^6 elements."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(LENGTHS[-1] // n, n, generator=generator) for n in LENGTHS]
    return [(f"{len(x[0])}", x) for x in drawn]


def tensors(model: nn.Module, batch: images.Batch) -> dict[str, list[tuple[str, Tensor]]]:
    """{kind: the network's tensors by layer}, on one batch."""
    found: dict[str, list[tuple[str, Tensor]]] = {"weights": [], "inputs": [], "gradients": []}

    def hooked(name: str, module: nn.Module) -> None:
        def forward(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found["inputs"].append((name, inputs[0].detach()))
            output.register_hook(lambda grad: found["gradients"].append((name, grad)))

        found["weights"].append((name, module.get_parameter("weight")))
        handles.append(module.register_forward_hook(forward))

    handles: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooked(name, module)
    model.train()
    images.cross_entropy(model, batch).backward()
    for handle in handles:
        handle.remove()
    return found


def curve(found: Sequence[tuple[str, Tensor]]) -> Curve:
    """The row of a run's tensors (of vectors in rows: the mean over them), and each of them."""
    each: list[dict[str, Any]] = []
    for name, x in found:
        rows = x if name.isdecimal() else x.reshape(1, -1)
        cosines = [statistics.fmean(cosine(row, bits) for row in rows) for bits in WIDTHS]
        each.append({"name": name, "elements": rows.shape[1], "cosines": [
            float(f"{value:.8g}") for value in cosines]})  # fmt: skip
    row: dict[str, float] = {"epoch": 1}
    for i, bits in enumerate(WIDTHS):
        row[f"cosine {bits}"] = statistics.fmean(one["cosines"][i] for one in each)
        row[f"bound {bits}"] = statistics.fmean(bound(bits, one["elements"]) for one in each)
        row[f"tight {bits}"] = statistics.fmean(tight(bits, one["elements"]) for one in each)
    return Curve(epochs=[row], more={"tensors": each})


def run(job: Job) -> Curve:
    """One kind of tensors; the run on weights trains the seed's network for the others."""
    if job.arm == "gaussian":
        return curve(gaussians(job.seed))
    dataset = images.load(job)
    model = quantize(images.resnet(job, dataset), recipe="fp32", norm=NORM).to(job.args.device)
    if job.needed is None:
        trained = images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))
        if trained.failed:
            return trained
        torch.save(model.state_dict(), job.kept)
    else:
        model.load_state_dict(torch.load(job.needed, weights_only=True))
    batch = next(iter(Batches(dataset.train, batch_size=64, seed=job.seed, augment=False)))
    return curve(tensors(model, batch)[job.arm])


EXPERIMENT = Experiment(
    name="angle",
    arms={
        "gaussian": "Gaussian vectors",
        "weights": "weights of a trained network",
        "inputs": "its layers' inputs",
        "gradients": "its layer gradients",
    },
    reference="gaussian",
    needs={"inputs": "weights", "gradients": "weights"},
    metric="cosine 4",
    paper={},
    published="theory",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=4000, epochs=10, milestones=(6, 8), every=10,
            batch=64, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet18", epochs=90, warmup=5, milestones=(30, 60, 80), batch=128, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Angles in degrees, of Gaussian vectors against N, of a network's tensors against M."""
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, widths = figure.subplots(1, 2, sharey=True)
    for i, bits in enumerate((1, 2, 4, 6, 8)):
        points = _points(result, "gaussian", bits)
        where = ([x for x, _ in points], [y for _, y in points])
        lengths.scatter(*where, s=12, color=f"C{i}", label=f"M = {bits}")
        for theory, dash in ((tight, "-"), (bound, "--")):
            angles = [degrees(theory(bits, n)) for n in LENGTHS]
            lengths.plot(LENGTHS, angles, dash, color=f"C{i}", linewidth=1)
    shift = -0.2
    for i, kind in enumerate(("weights", "inputs", "gradients")):
        for bits in WIDTHS:
            own = [angle for _, angle in _points(result, kind, bits)]
            label = kind if bits == WIDTHS[0] else None
            widths.scatter([bits + shift] * len(own), own, s=8, color=f"C{i}", alpha=0.5,
                           label=label)  # fmt: skip
        shift += 0.2
    for theory, dash, text in ((tight, "-", "tight form"), (bound, "--", "the paper's bound")):
        for i, count in enumerate((1_000, 1_000_000)):
            angles = [degrees(theory(bits, count)) for bits in WIDTHS]
            label = f"{text}, N = 10³ and 10⁶" if i == 0 else None
            widths.plot(WIDTHS, angles, dash, color="black", linewidth=1, label=label)
    lengths.set_xscale("log")
    lengths.set_xlabel("N, Gaussian elements (solid: tight form, dashed: bound)")
    lengths.set_ylabel("angle in degrees")
    lengths.set_yscale("log")
    lengths.set_ylim(top=200)  # room for the legend
    widths.set_xlabel("M, bits beside the sign; every tensor of the networks")
    widths.set_xticks(WIDTHS)
    lengths.legend(fontsize=8, loc="upper center", ncols=5)
    widths.legend(fontsize=8, loc="lower left")
    for axes in (lengths, widths):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def degrees(value: float) -> float:
    """The angle of a cosine."""
    return math.degrees(math.acos(min(1.0, value)))


def _points(result: Mapping[str, Any], arm: str, bits: int) -> list[tuple[int, float]]:
    """(elements, angle in degrees) of every tensor of an arm's runs."""
    return [
        (one["elements"], degrees(one["cosines"][WIDTHS.index(bits)]))
        for run in result["runs"]
        if run["arm"] == arm and run["failed"] is None
        for one in run["more"]["tensors"]
    ]


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    result = execute(EXPERIMENT, args)
    plot(result, args.output / f"angle-{args.scale}.svg")


if __name__ == "__main__":
    main()
