"""A training step's time, memory and parts: full precision, bf16, qtrain's recipes, the peers.

    python experiments/speed/run.py --networks resnet18 --compiled
    python experiments/speed/run.py --networks vit transformer-block --batch 8 16

Writes speed.json and speed.svg into --output, after each table.  README.md says what is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networks
import torch
from floor import Rates, measure_rates
from machine import machine
from plot import plot
from subjects import LAYOUTS
from table import measure, text, visits
from tqdm import tqdm

#: seconds that a visit to a subject takes at least: short steps are repeated
LEAST_SECONDS = 0.2


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--networks", nargs="+", choices=networks.names(), default=["resnet18"])
    add("--batch", nargs="+", type=int, help="batch sizes (default: each network's own)")
    add("--methods", nargs="+", metavar="NAME", help="rows to keep, e.g. int8 banner2018")
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    add("--compiled", action="store_true", help="also time torch.compile, where it is offered")
    add("--rounds", type=int, default=15)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, help="of torch on the CPU")
    add("--output", type=Path, default=Path(__file__).parent / "results")
    add("--quick", action="store_true", help="tiny networks: to try the script, not the speed")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.rounds < 1:
        raise SystemExit(f"--rounds: got {args.rounds}, need at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's starts and stops
    torch._dynamo.config.recompile_limit = 256  # rows share the code of their modules
    device = torch.device(args.device)
    plan = []
    for name in args.networks:
        network = networks.get(name, quick=args.quick)
        for batch in args.batch or [network.batch]:
            plan.append((network, batch))
    args.output.mkdir(parents=True, exist_ok=True)
    options = {k: v for k, v in vars(args).items() if k != "output"}
    result: dict[str, Any] = {"options": options, "environment": machine(device), "tables": []}
    rates: Rates = measure_rates(device, quick=args.quick)
    result["rates"] = vars(rates)

    total = sum(visits(network, args) for network, _ in plan)
    with tqdm(total=total, unit="visit", smoothing=0.05, disable=None) as bar:
        for network, batch in plan:
            bar.set_description(f"{network.name}, batch {batch}")
            least = 0.0 if args.quick else LEAST_SECONDS
            table = measure(network, batch, device, args, rates, least, lambda: bar.update())
            result["tables"].append(table)
            _save(result, args.output)
            bar.write(text(table))


def _save(result: dict[str, Any], folder: Path) -> None:
    """Both files whole: what was measured so far survives an interruption."""
    picture = io.BytesIO()
    plot(result["tables"], picture)
    data = (json.dumps(result, indent=1) + "\n").encode()
    for name, content in (("speed.json", data), ("speed.svg", picture.getvalue())):
        whole = folder / f"{name}.tmp"
        whole.write_bytes(content)
        whole.replace(folder / name)


if __name__ == "__main__":
    main()
