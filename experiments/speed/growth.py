"""How a step's cost grows with batch, width and depth, and what one more layer costs in Python.

    python experiments/speed/growth.py

Writes growth.json and growth.svg into --output.  Eager steps, fp32 and int8, interleaved.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import machine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from step import Step
from tabulate import tabulate
from timing import interleaved, ratio, spread
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from qtrain import quantize

#: the sizes of each sweep; the others stay at `MIDDLE`
SWEEPS = {"batch": (8, 16, 32, 64, 128), "width": (16, 32, 64, 128), "depth": (2, 4, 8, 16)}
MIDDLE = {"batch": 32, "width": 64, "depth": 4}
PIXELS = 16
#: layers of the chains whose slope is the cost of one more
CHAIN = (2, 4, 8, 16, 32)
CHANNELS = 8  # of a chain, on one pixel: no arithmetic to speak of
MICRO = 1e6


class Line(NamedTuple):
    """Seconds = start + slope * layers, by least squares."""

    start: float
    slope: float


def stack(width: int, depth: int) -> nn.Module:
    """A stem and `depth` 3x3 convolutions with ReLUs: (batch, 3, 16, 16) -> (batch, width)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def chain(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(layers)))


def sweep(
    name: str, device: torch.device, *, rounds: int, quick: bool, tick: Callable[[], Any]
) -> list[dict[str, Any]]:
    """Both steps at every size of one sweep."""
    rows = []
    for value in SWEEPS[name][:2] if quick else SWEEPS[name]:
        size = {**MIDDLE, **({"batch": 2, "width": 4, "depth": 1} if quick else {}), name: value}
        x = torch.randn(size["batch"], 3, PIXELS, PIXELS, device=device)
        target = torch.randn(size["batch"], size["width"], device=device)
        torch.manual_seed(0)
        plain = stack(size["width"], size["depth"]).to(device)
        models = {"int8": quantize(plain), "fp32": plain}
        steps = {
            kind: Step(
                model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
                (x.to(memory_format=torch.channels_last), target),
                F.mse_loss,
            )
            for kind, model in models.items()
        }
        times = interleaved(steps, rounds=rounds, least_seconds=0 if quick else 0.1, tick=tick)
        rows.append(
            {
                **size,
                "seconds": {kind: spread(values) for kind, values in times.items()},
                "ratio": ratio(times["int8"], times["fp32"]),
            }
        )
    return rows


def per_layer(
    device: torch.device, *, rounds: int, quick: bool, tick: Callable[[], Any]
) -> dict[str, Any]:
    """Forward and backward of chains of tiny convolutions: the fastest round of each length."""
    lengths = CHAIN[:2] if quick else CHAIN
    models = {}
    for n in lengths:
        models["fp32", n] = chain(n).to(device)
        models["int8", n] = quantize(models["fp32", n])
    best = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for key, model in models.items():
            best[key] = min(best[key], _forward_backward(model, device, 2 if quick else 20))
        tick()
    lines = {}
    for kind in ("fp32", "int8"):
        slope, start = np.polyfit(lengths, [best[kind, n] for n in lengths], 1)
        lines[kind] = Line(float(start), float(slope))
    return {
        "layers": lengths,
        "seconds": {kind: [best[kind, n] for n in lengths] for kind in lines},
        "lines": lines,
        "extra_microseconds": MICRO * (lines["int8"].slope - lines["fp32"].slope),
    }


def _forward_backward(model: nn.Module, device: torch.device, repeats: int) -> float:
    x = torch.randn(1, CHANNELS, 1, 1, device=device, requires_grad=True)
    best = float("inf")
    for _ in range(repeats):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        model(x).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        raise SystemExit(f"--rounds: got {args.rounds}, need at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    sizes = sum(2 if args.quick else len(values) for values in SWEEPS.values())
    common = {"rounds": args.rounds, "quick": args.quick}
    with tqdm(total=(2 * sizes + 1) * args.rounds, unit="visit", disable=None) as bar:
        sweeps = {name: sweep(name, device, **common, tick=bar.update) for name in SWEEPS}
        layer = per_layer(device, **common, tick=bar.update)
    result = {"environment": machine(device), "sweeps": sweeps, "per_layer": layer}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    _plot(result, args.output / "growth.svg")
    _print(result)


def _print(result: dict[str, Any]) -> None:
    rows = [
        [name, row[name], *(row["seconds"][kind].text(1000) for kind in ("fp32", "int8")),
         row["ratio"].text(digits=2)]
        for name, sweep in result["sweeps"].items()
        for row in sweep
    ]  # fmt: skip
    print(tabulate(rows, ["sweep", "", "fp32 ms", "int8 ms", "int8 / fp32"], disable_numparse=True))
    layer = result["per_layer"]
    slopes = {kind: MICRO * line.slope for kind, line in layer["lines"].items()}
    print(
        f"one more Conv2d, forward and backward: fp32 {slopes['fp32']:.0f} us, "
        f"int8 {slopes['int8']:.0f} us, {layer['extra_microseconds']:.0f} us more"
    )


def _plot(result: dict[str, Any], path: Path) -> None:
    """Seconds against each size, both logarithmic, and the chains with their lines."""
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(SWEEPS) + 1)
    for ax, (name, rows) in zip(axes, result["sweeps"].items(), strict=False):
        for colour, kind in (("C0", "fp32"), ("C1", "int8")):
            milliseconds = [1000 * row["seconds"][kind].median for row in rows]
            ax.loglog([row[name] for row in rows], milliseconds, "o-", color=colour, label=kind)
        ax.set_xlabel(name)
        ax.set_ylabel("ms a step")
    layer = result["per_layer"]
    for colour, kind in (("C0", "fp32"), ("C1", "int8")):
        x = np.array(layer["layers"])
        line = layer["lines"][kind]
        axes[-1].plot(x, [1000 * s for s in layer["seconds"][kind]], "o", color=colour, label=kind)
        axes[-1].plot(x, 1000 * (line.start + line.slope * x), "-", color=colour, linewidth=1)
    axes[-1].set_xlabel("layers of a chain of tiny convolutions")
    axes[-1].set_ylabel("ms forward and backward")
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
