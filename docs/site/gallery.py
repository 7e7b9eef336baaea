"""Every figure of docs/gallery.md, from short runs: `python docs/site/gallery.py`, two minutes of a
CPU; with chromium on PATH also the picture of a run's page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from qtrain import Monitor, TrainConfig, inspect, models, quantize, study, train
from qtrain import data as data_sets
from qtrain.training.demo.demo import demo
from quantizers import FloatFormat, accumulate, accumulators, e4m3, round_to

FIGURES = Path(__file__).parents[1] / "figures"


def run() -> None:
    """A network in full precision and in int4: curves, and the top of the run's page."""
    config = TrainConfig(
        recipe="int8", bits=4, model="resnet20", epochs=4, monitor=10, name="run", overwrite=True
    )
    train(config)
    shutil.copy("runs/run/curves.png", FIGURES / "run.png")
    subprocess.run([sys.executable, "-m", "qtrain.cli", "report", "runs/run"], check=True)
    browser = shutil.which("chromium")
    if browser:
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--hide-scrollbars"),
                *("--window-size=1100,900", f"--screenshot={FIGURES / 'page.png'}"),
                Path("runs/run/report.html").resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def story() -> None:
    """The demonstration: full precision, int8, int4, and int4 mended."""
    found = demo()
    ax = Figure(figsize=(8, 3.6), layout="constrained", dpi=90).subplots()
    for arm, result in found.results.items():
        rows = [row for row in result.epochs if row["branch"] == "quantized"]
        points = [100 * row["test_accuracy"] for row in rows]
        ax.plot(range(1, len(points) + 1), points, marker="o", markersize=3, label=arm)
    ax.set_ylim(bottom=60)
    ax.set_xlabel("epoch")
    ax.set_ylabel("test accuracy (%)")
    ax.grid(alpha=0.3)
    ax.legend()
    ax.figure.savefig(FIGURES / "demo.png")


def planted() -> None:
    """A network in int8 with one layer in 3 bits: its Monitor over 60 steps, and one batch."""
    digits = data_sets.load("digits")
    torch.manual_seed(0)
    net = models.get("resnet20", **digits.sizes)
    model = quantize(net, recipe="int8", overrides={"layer2.0.conv1": 3})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with Monitor(model, every=3, layers=None) as monitor:
        for epoch in range(3):
            batches = data_sets.Batches(split=digits.train, batch_size=64, seed=0, epoch=epoch)
            for images, labels in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
    left, right = Figure(figsize=(11, 4.2), layout="constrained", dpi=80).subplots(1, 2)
    for ax, role in ((left, "output"), (right, "grad_input")):
        monitor.plot(ax=ax, roles=[role])
    left.figure.savefig(FIGURES / "monitor.png")
    ax = Figure(figsize=(11, 5), layout="constrained", dpi=80).subplots()
    inspect(model, images, labels).plot(ax=ax)
    ax.figure.savefig(FIGURES / "inspect.png")


def seeds() -> None:
    """A study of four arms and three seeds."""
    arms = {f"int{bits}": {"recipe": "int8", "bits": bits} for bits in (8, 4, 2)}
    config = {"epochs": 4, "batch_size": 128}
    result = study("mlp", {"fp32": None, **arms}, seeds=3, config=config, margin=0.02)
    result.plot(FIGURES / "study.png")


def sums() -> None:
    """How far from the exact sum are sums of e4m3 products, by their length and mantissa."""
    draw = torch.Generator().manual_seed(0)
    a, b = (round_to(torch.randn(256, 4096, generator=draw), e4m3) for _ in range(2))
    ax = Figure(figsize=(8, 4.2), layout="constrained", dpi=80).subplots()
    lengths = [2**k for k in range(3, 13)]
    units = {
        "fp32, term by term": accumulators.sequential(FloatFormat(8, 23)),
        "10 bits of mantissa": accumulators.sequential(FloatFormat(8, 10)),
        "10 bits, chunks of 64": accumulators.sequential(FloatFormat(8, 10), chunk=64),
        "H100's tensor core": accumulators.get("H100", "e4m3"),
        "the same, in fp32 every 128": accumulators.get("H100", "e4m3", promote=128),
    }
    for name, unit in units.items():
        errors = []
        for length in lengths:
            x, y = a[:, :length], b[:, :length]
            exact = (x.double() * y.double()).sum(-1)
            error = accumulate(x, y, unit, formats=(e4m3, e4m3)).double() - exact
            errors.append((error.square().mean() / exact.square().mean()).sqrt().item())
        ax.loglog(lengths, errors, marker="o", label=name)
    ax.set_xlabel("terms of the sum")
    ax.set_ylabel("root mean square error, relative")
    ax.grid(alpha=0.3)
    ax.legend()
    ax.figure.savefig(FIGURES / "sums.png")


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    os.chdir(tempfile.mkdtemp())
    for figure in (run, story, planted, seeds, sums):
        figure()
    for path in sorted(FIGURES.iterdir()):
        print(f"{path.name} {path.stat().st_size // 1024} KiB")
