"""How much the norm's deviation costs the 8-bit layer gradient, on a trained run's weights.

    qtrain train int8-resnet18 --epochs 8 --lr 0.02 --no-baseline --threads 1 --name digits
    python experiments/int8_vs_fp32/norm_and_gradient.py runs/digits/checkpoint.pt [--data-dir PATH]

Puts the run's quantized weights under batch-norms of different deviations and inspects one training
batch.  Prints the SQNR of grad_output as quantized for grad_input over all layers, and writes that
of every layer and role to results/norm_and_gradient-<the run's name>.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from qtrain import TrainConfig, data, environment, inspect, models, quantize

NORMS = {"l2": None, "l1": "l1", "range": "range"}
GRADIENT = "grad_output (grad_input)"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--cache-dir")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    config = TrainConfig.from_dict(checkpoint["config"])
    torch.set_num_threads(config.threads or torch.get_num_threads())
    directory = args.data_dir or config.data_dir
    dataset = data.load(config.data, data_dir=directory, cache_dir=args.cache_dir)
    batch = next(iter(data.Batches(dataset.train, batch_size=args.batch_size)))
    state = checkpoint["branches"]["quantized"]["model"]
    weights = {k: v for k, v in state.items() if ".product." not in k and ".state." not in k}
    found = {}
    for name, norm in NORMS.items():
        torch.manual_seed(0)
        network = models.get(config.model, **dataset.sizes)
        network.load_state_dict(weights)
        model = quantize(network, recipe=config.quantization(), norm=norm).train()
        found[name] = sqnr(model, batch)
    rows = [
        [name, min(values), statistics.median(values), max(values)]
        for name, roles in found.items()
        for values in [roles[GRADIENT].values()]
    ]
    headers = ["batch-norm", "lowest layer (dB)", "median (dB)", "highest (dB)"]
    print(tabulate(rows, headers, floatfmt=".1f"))
    result = {
        "config": {k: v for k, v in config.to_dict().items() if not k.endswith("_dir")},
        "batch": args.batch_size,
        "environment": environment(torch.device("cpu")),
        "sqnr_db": found,
    }
    args.out.mkdir(exist_ok=True)
    path = args.out / f"norm_and_gradient-{args.checkpoint.resolve().parent.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def sqnr(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, dict[str, float]]:
    """{role: {layer: dB}} of one batch's operands as quantized."""
    roles: dict[str, dict[str, float]] = {}
    for row in inspect(model, *batch).rows:
        roles.setdefault(row.role, {})[row.layer] = float(f"{row.sqnr_db:.4g}")
    return roles


if __name__ == "__main__":
    main()
