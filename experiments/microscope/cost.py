"""What the microscope costs: a Monitor's record beside a step, and a sensitivity report.

    python experiments/microscope/cost.py [--threads 2]

ResNet-18, int8 with range batch-norm, channels-last.  Monitor: steps with a record and without,
in turn; the median of what a record adds, in percent of 100 steps (every=100, 8 layers a record).
Sensitivity: wall and processor time of one report on a batch of 32 images of 32x32.  Prints a
table, and writes results/cost.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from qtrain import Monitor, environment, models, quantize, sensitivity


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=16, help="records that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    monitor = [monitored(size, batch, args.rounds) for size, batch in ((8, 64), (32, 32))]
    reports = [reported(by) for by in ("layer", "product", "role")]
    print(tabulate(monitor, headers="keys", floatfmt=".3g"))
    print(f"\n{tabulate(reports, headers='keys', floatfmt='.3g')}")
    args.out.mkdir(exist_ok=True)
    result = {
        "environment": environment(torch.device("cpu")),
        "threads": args.threads,
        "monitor": monitor,
        "sensitivity": reports,
    }
    (args.out / "cost.json").write_text(json.dumps(result, indent=1) + "\n")


def network(size: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = models.get("resnet18", num_classes=10, in_channels=3, image_size=size)
    model = quantize(net, norm="range").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))


def monitored(size: int, batch: int, rounds: int) -> dict[str, Any]:
    """A record's time beside a step's, in ms."""
    model, images, labels = network(size, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for _ in range(3):  # kernels compile
        step()
    plain, more = [], []
    with Monitor(model, 2) as monitor:
        step()
        step()
        for _ in range(rounds):
            recorded, bare = timed(step), timed(step)
            plain.append(bare)
            more.append(recorded - bare)
        rows = len(monitor.rows) / len({row.step for row in monitor.rows})
    base, added = statistics.median(plain), statistics.median(more)
    low, _, high = statistics.quantiles(more, n=4)
    return {
        "pixels": size, "batch": batch, "step (ms)": 1e3 * base, "record adds (ms)": 1e3 * added,
        "quartiles (ms)": f"{1e3 * low:.0f} to {1e3 * high:.0f}", "rows": rows, "n": rounds,
        "% at every=100": added / base,
    }  # fmt: skip


def reported(by: str) -> dict[str, Any]:
    """The time of a report, in seconds."""
    model, images, labels = network(32, 32)
    cpu, wall = time.process_time(), time.perf_counter()
    report = sensitivity(model, images, labels, by=by)
    return {
        "sensitivity by": by, "parts": len(report.rows), "wall (s)": time.perf_counter() - wall,
        "processor (s)": time.process_time() - cpu,
    }  # fmt: skip


def timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
