"""A training step on a GPU: fp32, TF32, bf16, qtrain's recipes, eager and captured; its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import networks
import torch
from memory import peak_bytes
from networks import Block, Network, ViT
from step import Step
from subjects import CHANNELS_LAST, CONTIGUOUS, FP32, Subject, methods
from table import first_line
from tabulate import tabulate

from .clock import Budget, captured, milliseconds

TF32 = "TF32"
#: of a step's kernels, those that take longest
SHOWN = 12
#: of those that are timed on a CPU
METHODS = (
    FP32, "bf16 autocast", "int8", "int8 range-norm", "int8 range-norm fp16-stored", "fp8", "mxfp8",
    "banner2018", "QPyTorch",
)  # fmt: skip


def networks_of(quick: bool) -> list[tuple[Network, int]]:
    """Networks and batch sizes, by worth."""
    if quick:
        return [(networks.get("resnet18", quick=True), 2)]
    small, large = networks.get("resnet18"), networks.get("resnet50")
    block = Network(
        name="transformer-block-1024", make=partial(Block, 1024, 16, causal=True),
        sample=(1024, 1024), classes=None, batch=8, images=False,
    )  # fmt: skip
    vit = partial(ViT, size=224, patch=16, width=384, depth=12, heads=6, classes=1000)
    images = Network(
        name="vit-s", make=vit, sample=large.sample, classes=1000, batch=64, images=False
    )
    return [(small, 128), (block, 8), (large, 64), (small, 1024), (images, 64)]


def subjects_of(network: Network) -> dict[str, Subject]:
    """Full precision without and with TF32, and what is compared with it."""
    layout = CHANNELS_LAST if network.images else CONTIGUOUS
    known = {
        method.name: Subject(method=method, layout=layout, compiled=False)
        for method in methods(network)
        if method.name in METHODS
    }
    return {FP32: known[FP32], TF32: known[FP32], **known}


@contextmanager
def _units(tf32: bool) -> Iterator[None]:
    own, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = own.allow_tf32, matrices.allow_tf32
    own.allow_tf32 = matrices.allow_tf32 = tf32
    try:
        yield
    finally:
        own.allow_tf32, matrices.allow_tf32 = before


def _kernels(step: Step) -> list[tuple[str, int, float]]:
    """Kernels and copies of one step, the longest first: name, launches, ms of all of them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        step.wait()
    events = [event for event in found.key_averages() if event.self_device_time_total > 0]
    rows = [(event.key[:80], event.count, event.self_device_time_total / 1e3) for event in events]
    return sorted(rows, key=lambda row: -row[2])


def measure(network: Network, batch: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each method and mode."""
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, subject in subjects_of(network).items():
        row: dict[str, Any] = {"method": name, "mode": "eager"}
        rows[name] = row
        if subject.missing is not None:
            row["failed"] = f"not installed: {subject.missing}"
            continue
        replayed = f"{name}, captured"
        with _units(name != FP32):
            try:
                step = subject.build(network, batch, torch.device("cuda"))
                for _ in range(3):
                    step()
                row["peak_bytes"], kernels = peak_bytes(step), _kernels(step)
                row["launches"] = sum(count for _, count, _ in kernels)
                row["busy_ms"] = sum(ms for *_, ms in kernels)
                row["kernels"] = kernels[:SHOWN]
                runs[name] = _within(step, name)
                row = rows[replayed] = {"method": name, "mode": "captured"}
                runs[replayed] = _within(_captured(step), name)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {first_line(error)}"
    times = milliseconds(runs, rounds, 20.0)
    for key, spread in times.items():
        row = rows[key]
        row["ms"] = spread
        beside = times.get(TF32 if row["mode"] == "eager" else f"{TF32}, captured")
        row["ratio"] = None if beside is None else spread.median / beside.median
    return list(rows.values())


def _captured(step: Step) -> Callable[[], None]:
    """A step whose forward and backward are a CUDA graph."""

    def gradients() -> None:
        step.clear()
        step.forward().backward()

    replay = captured(gradients)

    def run() -> None:
        replay()
        step.update()

    return run


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
    for network, batch in networks_of(quick):
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
        lines, shares = [], []
        for row in table["rows"]:
            if "ms" not in row:
                lines.append([row["method"], row["mode"], row.get("failed", "")])
                continue
            low, median, high = row["ms"]
            peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
            busy = f"{row['busy_ms']:.2f}" if "busy_ms" in row else ""
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            lines.append(
                [row["method"], row["mode"], f"{median:.2f} [{low:.2f}, {high:.2f}]", ratio, busy,
                 peak, row.get("launches", "")]
            )  # fmt: skip
            longest = [f"{name} {ms:.2f} ({count})" for name, count, ms in row.get("kernels", [])]
            if longest and row["method"] not in (FP32, TF32):
                shares.append(f"{row['method']}, ms (launches): {', '.join(longest[:8])}")
        headers = ["", "", "ms", "/ TF32", "busy ms", "peak MiB", "launches"]
        body = tabulate(lines, headers, disable_numparse=True)
        found = "\n".join([f"{table['network']}, batch {table['batch']}", body, *shares])
        parts.append(found)
    return "\n\n".join(parts)
