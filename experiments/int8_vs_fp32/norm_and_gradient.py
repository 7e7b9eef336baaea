"""How much the norm's deviation costs the 8-bit layer gradient, on a trained run's weights.

    python experiments/int8_vs_fp32/norm_and_gradient.py runs/NAME/checkpoint.pt [--data-dir PATH]

Puts the run's quantized weights under batch-norms of different deviations and inspects one training
batch: the SQNR of grad_output as quantized for grad_input, over all layers.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from tabulate import tabulate

from qtrain import TrainConfig, data, inspect, models, quantize
from qtrain.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data-dir")
    parser.add_argument("--cache-dir")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    checkpoint = load_checkpoint(Path(args.checkpoint))
    config = TrainConfig.from_dict(checkpoint.config)
    directory = args.data_dir or config.data_dir
    dataset = data.load(config.data, data_dir=directory, cache_dir=args.cache_dir)
    images, labels = next(iter(data.Batches(dataset.train, batch_size=args.batch_size)))
    state = checkpoint.branches["quantized"]["model"]
    weights = {k: v for k, v in state.items() if ".product." not in k and ".state." not in k}

    rows = []
    for norm in (None, "l1", "range"):
        torch.manual_seed(0)
        network = models.get(config.model, **dataset.sizes)
        network.load_state_dict(weights)
        model = quantize(network, recipe=config.quantization(), norm=norm).train()
        rows_of = [r for r in inspect(model, images, labels).rows if "(grad_input)" in r.role]
        values = [row.sqnr_db for row in rows_of]
        rows.append([norm or "l2 (torch)", min(values), statistics.median(values), max(values)])
    headers = ["batch-norm", "lowest layer (dB)", "median (dB)", "highest (dB)"]
    print(tabulate(rows, headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
