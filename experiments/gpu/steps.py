"""A training step on a GPU: fp32, TF32, bf16, qtrain's recipes, eager and captured; its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import networks
import peers
import torch
from networks import Block, Network, ViT
from step import Step
from tabulate import tabulate
from torch import nn

from qtrain import quantize_, recipes
from qtrain.models import resnet18, resnet50

from .clock import Budget, interleaved

Convert = Callable[[nn.Module], nn.Module]


def subjects(quick: bool) -> list[tuple[Network, int]]:
    """Networks and batch sizes, by worth."""
    if quick:
        return [(networks.get("resnet18", quick=True), 2)]
    images = partial(Network, sample=(3, 224, 224), classes=1000, batch=64)
    small = Network(
        name="ResNet-18 32x32", make=partial(resnet18, num_classes=10, stem="cifar"),
        sample=(3, 32, 32), classes=10, batch=128,
    )  # fmt: skip
    block = Network(
        name="Transformer block 1024 x 1024", make=partial(Block, 1024, 16, causal=True),
        sample=(1024, 1024), classes=None, batch=8, images=False,
    )  # fmt: skip
    vit = partial(ViT, size=224, patch=16, width=384, depth=12, heads=6, classes=1000)
    return [
        (small, 128),
        (block, 8),
        (images(name="ResNet-50 224x224", make=partial(resnet50, num_classes=1000)), 64),
        (small, 1024),
        (images(name="ViT-S 224", make=vit, images=False), 64),
    ]


def _methods(network: Network) -> dict[str, Convert | None]:
    found: dict[str, Convert | None] = {
        "fp32": None,
        "TF32": None,
        "bf16 autocast": None,
        "int8": partial(quantize_, recipe=recipes.int8()),
    }
    if network.images:
        found["int8 + range"] = partial(quantize_, recipe=recipes.int8(), norm="range")
    found["banner2018"] = partial(quantize_, recipe=recipes.banner2018())
    found["QPyTorch"] = peers.qtorch
    return found


@contextmanager
def _units(tf32: bool) -> Iterator[None]:
    own, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = own.allow_tf32, matrices.allow_tf32
    own.allow_tf32 = matrices.allow_tf32 = tf32
    try:
        yield
    finally:
        own.allow_tf32, matrices.allow_tf32 = before


def _build(network: Network, batch: int, name: str, convert: Convert | None) -> Step:
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = network.make().to(device)
    inputs, targets = network.data(batch, device)
    if network.images:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.to(memory_format=torch.channels_last)
    autocast = torch.bfloat16 if name == "bf16 autocast" else None
    model = model if convert is None else convert(model)
    return Step(model, (inputs, targets), network.loss, autocast=autocast)


def _captured(step: Step) -> Callable[[], None]:
    """Forward and backward as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step.clear()
            step.forward().backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph, optimizer = torch.cuda.CUDAGraph(), step._optimizer
    step.clear()
    with torch.cuda.graph(graph):
        step.forward().backward()

    def run() -> None:
        graph.replay()
        optimizer.step()

    return run


def _launches(step: Step) -> int:
    """Kernels and copies of one step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        step.wait()
    return sum(event.count for event in found.key_averages() if event.self_device_time_total > 0)


def measure(network: Network, batch: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each method and mode."""
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, convert in _methods(network).items():
        row: dict[str, Any] = {"method": name, "mode": "eager"}
        rows[name] = row
        with _units(name != "fp32"):
            torch.cuda.reset_peak_memory_stats()
            others = torch.cuda.memory_allocated()
            try:
                step = _build(network, batch, name, convert)
                for _ in range(3):
                    step()
                row["peak_bytes"] = torch.cuda.max_memory_allocated() - others
                row["launches"] = _launches(step)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
                continue
            runs[name] = _within(step, name)
            key = f"{name}, captured"
            rows[key] = {"method": name, "mode": "captured"}
            try:
                runs[key] = _within(_captured(step), name)
            except Exception as error:
                rows[key]["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
                torch.cuda.synchronize()
    times = interleaved(runs, rounds)
    for key, quartiles in times.items():
        rows[key]["ms"] = quartiles
        rows[key]["ratio"] = quartiles[1] / times["TF32"][1]
    return list(rows.values())


def _within(run: Callable[[], object], name: str) -> Callable[[], None]:
    def call() -> None:
        with _units(name != "fp32"):
            run()

    return call


def run(
    budget: Budget,
    done: Callable[[object], None],
    *,
    rounds: int = 5,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """As many networks as there is time for; done: is told what is measured, after each."""
    found: list[dict[str, Any]] = []
    for network, batch in subjects(quick):
        if budget.left < 20 and found:
            break
        rows = measure(network, batch, rounds)
        found.append({"network": network.name, "batch": batch, "rows": rows})
        done(found)
        print(text(found[-1:]), flush=True)
        torch.cuda.empty_cache()
    return found


def text(tables: list[dict[str, Any]]) -> str:
    parts = []
    for table in tables:
        lines = []
        for row in table["rows"]:
            if "ms" not in row:
                lines.append([row["method"], row["mode"], row.get("failed", "")])
                continue
            low, median, high = row["ms"]
            peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
            lines.append(
                [row["method"], row["mode"], f"{median:.2f} [{low:.2f}, {high:.2f}]",
                 f"{row['ratio']:.2f}", peak, row.get("launches", "")]
            )  # fmt: skip
        headers = ["", "", "ms", "/ TF32", "peak MiB", "launches"]
        body = tabulate(lines, headers, disable_numparse=True)
        parts.append(f"{table['network']}, batch {table['batch']}\n{body}")
    return "\n\n".join(parts)
