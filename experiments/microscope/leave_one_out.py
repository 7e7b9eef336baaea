"""Does leave-one-out, minutes of work at a few points of one run, say what retraining would?

    python -m experiments.microscope.leave_one_out [--equal 4 --by layer --seeds 24]

A small convolutional network learns the 8x8 digits in few bits, all three products of a layer in
as many as `BITS` says, 2 to 8, so that layers differ in what they cost.  Retraining, the truth: for
every layer, and every product of every layer, it is trained from scratch with that part alone in
full precision; how much the mean training loss of the run falls is what the part costs.
Leave-one-out: `sensitivity` at a few points of the quantized run says how much the cosine
of the gradient gains with that part put back.  Printed, and written to results/: Spearman's rank
correlation of the two over the parts, for each ranking that a report offers, with its interval, and
how well one half of the seeds of the retraining agrees with the other, which is about what the
noise of the truth allows.  Beside them baselines that measure no rounding's effect: a layer's bits,
SQNR, parameters, gradient.  --equal: the same bits in all of 37 layers of a ResNet-34, so that bits
rank nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.microscope.baselines import baselines
from experiments.microscope.rank import spearman
from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Recipe,
    SensitivityReport,
    data,
    environment,
    models,
    quantize,
    recipes,
    sensitivity,
)
from quantizers import IntFormat, Quantizer, stochastic

BITS = {"0": 4, "3": 2, "6": 6, "9": 3, "12": 8, "15": 3, "19": 5, "21": 4}  # by layer
EPOCHS = 3
BATCH = 64
LR = 0.05  # at the start, then a cosine to 0; momentum 0.9
POINTS = (0.25, 0.5, 0.75)  # of the run, where leave-one-out is taken
BATCHES = 2  # there, of BATCH images each
RANKINGS = ("gain_cosine", "gain_loss", "alone_error", "alone_loss")
PRIMARY = "gain_cosine"  # chosen before the first run: how `report.worst` ranks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--by", nargs="+", choices=("layer", "product"), default=["layer", "product"]
    )
    parser.add_argument("--seeds", type=int, default=12, help="how many: 0, 1, ...")
    parser.add_argument("--equal", type=int, help="bits of all layers of a ResNet-34")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(exist_ok=True)
    subject = MIXED if args.equal is None else equal(args.equal)
    for by in args.by:
        started = time.process_time()
        result = compared(by, range(args.seeds), subject)
        print(f"\nby {by}, n = {len(result['parts'])}, {args.seeds} seeds\n{table(result)}")
        report = {
            "recipes": {layer: str(recipe(bits)) for layer, bits in subject.bits.items()},
            "setting": {
                "epochs": EPOCHS, "batch": BATCH, "lr": LR, "points": POINTS,
                "batches": BATCHES, "primary": PRIMARY,
            },
            "seeds": list(range(args.seeds)),
            "cpu_seconds": round(time.process_time() - started),
            **result,
            "environment": environment(torch.device("cpu")),
        }  # fmt: skip
        name = "" if args.equal is None else f"_equal_{args.equal}"
        path = args.out / f"leave_one_out{name}_{by}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


def recipe(bits: int) -> Recipe:
    """Every product in so many bits, gradients rounded stochastically."""
    wide = Quantizer(format=IntFormat(bits), rounding=stochastic())
    return replace(recipes.int8(bits=bits), name="all", grad_weight=GradWeight(grad_output=wide))


def without(own: Recipe, part: str) -> Recipe:
    """The recipe with a product, or all three, in full precision."""
    off: dict[str, Any] = {
        "forward": Forward(), "grad_input": GradInput(), "grad_weight": GradWeight()
    }  # fmt: skip
    return replace(own, **(off if part == "all" else {part: off[part]}))


def network(seed: int) -> nn.Module:
    """Six convolutions with batch-norm and two linear layers, for (N, 1, 8, 8)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer, stride in (
        (1, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1),
    ):  # fmt: skip
        convolution = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))


class Subject(NamedTuple):
    """The network of a seed, and each layer's bits."""

    network: Callable[[int], nn.Module]
    bits: Mapping[str, int]


MIXED = Subject(network, BITS)


def equal(bits: int) -> Subject:
    """A narrow ResNet-34, all of its 37 layers in so many bits."""

    def resnet(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.resnet34(num_classes=10, in_channels=1, stem="cifar", width=4)

    kinds = nn.Conv2d | nn.Linear
    layers = [name for name, layer in resnet(0).named_modules() if isinstance(layer, kinds)]
    return Subject(resnet, dict.fromkeys(layers, bits))


def batches(seed: int, epoch: int) -> data.Batches:
    """Those of an epoch, in the order of a seed."""
    split = data.load("digits").train
    return data.Batches(split, batch_size=BATCH, seed=seed, epoch=epoch, drop_last=True)


def quantized(seed: int, changes: Mapping[str, Recipe], subject: Subject) -> nn.Module:
    """The network, each layer in its bits or as `changes` says."""
    own = {layer: recipe(bits) for layer, bits in subject.bits.items()}
    return quantize(subject.network(seed), recipe="fp32", overrides={**own, **changes}, seed=seed)


def trained(
    seed: int,
    changes: Mapping[str, Recipe],
    subject: Subject = MIXED,
    look: Callable[[int, nn.Module], None] | None = None,
) -> float:
    """The mean training loss of the run; look: is shown the model before each step."""
    model = quantized(seed, changes, subject)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    losses: list[float] = []
    total = EPOCHS * len(batches(seed, 0))
    for epoch in range(EPOCHS):
        for images, labels in batches(seed, epoch):
            if look is not None:
                look(len(losses), model)
            optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * len(losses) / total)) / 2
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return fmean(losses)


def looked(
    seed: int, by: str, subject: Subject = MIXED
) -> list[tuple[SensitivityReport, dict[str, list[float]]]]:
    """Leave-one-out at each point of the quantized run, and what the baselines say of its parts."""
    found = []
    total = EPOCHS * len(batches(seed, 0))
    points = [round(point * total) for point in POINTS]

    def look(step: int, model: nn.Module) -> None:
        if step in points:
            (images, labels), *more = islice(batches(seed, EPOCHS + step), BATCHES)
            report = sensitivity(model, images, labels, by=by, more=more)
            found.append((report, baselines(model, images, labels, report.rows)))

    trained(seed, {}, subject, look)
    return found


def compared(by: str, seeds: Sequence[int], subject: Subject) -> dict[str, Any]:
    """Retraining against leave-one-out, the parts in network order."""
    reports = [looked(seed, by, subject) for seed in seeds]
    base = [trained(seed, {}, subject) for seed in seeds]
    units = [(row.layer, row.part) for row in reports[0][0][0].rows]
    falls: list[list[float]] = []  # of each part, by seed
    for layer, part in units:
        changes = {layer: without(recipe(subject.bits[layer]), part)}
        falls.append([b - trained(s, changes, subject) for s, b in zip(seeds, base, strict=True)])
        print(f"{by} {layer} {part}: loss falls by {fmean(falls[-1]):+.4f}", flush=True)
    truth = [fmean(own) for own in falls]
    halves = [[fmean(own[start::2]) for own in falls] for start in (0, 1)]
    scores = {
        ranking: [
            fmean(getattr(report.rows[i], ranking) for own in reports for report, _ in own)
            for i in range(len(units))
        ]
        for ranking in RANKINGS
    }
    scores["bits"] = [-float(subject.bits[layer]) for layer, _ in units]
    for name in reports[0][0][1]:
        own = [values[name] for points in reports for _, values in points]
        scores[name] = [fmean(column) for column in zip(*own, strict=True)]
    return {
        "parts": [" ".join(unit) for unit in units],
        "loss": base,
        "falls": falls,
        "scores": scores,
        "spearman": {name: spearman(truth, own) for name, own in scores.items()},
        "halves": spearman(*halves),
    }


def table(result: Any) -> str:
    """The parts, the worst first, and the correlations."""
    scores = result["scores"]
    order = sorted(range(len(result["parts"])), key=lambda i: -fmean(result["falls"][i]))
    rows = [
        [result["parts"][i], fmean(result["falls"][i]), *(own[i] for own in scores.values())]
        for i in order
    ]
    lines = [tabulate(rows, ["part", "retraining", *scores], floatfmt=".4g")]
    named = {**result["spearman"], "one half of the seeds with the other": result["halves"]}
    lines += [f"{name}: rho {rho:.2f} [{a:.2f}, {b:.2f}]" for name, (rho, a, b) in named.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
