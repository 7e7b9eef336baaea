"""int8 against full precision: the same network, data order and initial weights, several seeds.

    python experiments/int8_vs_fp32/run.py digits
    python experiments/int8_vs_fp32/run.py cifar10 --data imagefolder --data-dir PATH

The first trains ResNet-18 (CIFAR stem, full width) on the 8x8 digits with 5 seeds, the second
ResNet-20 on CIFAR-10 with one.  Both: recipe int8, range batch-norm, FP16 activations (Banner et
al., "Scalable methods for 8-bit training", NeurIPS 2018, report ResNet-18 on ImageNet: error
about 34.0 % in full precision, about 33.5 % in 8 bits, read off their poster).  Writes
results/<setting>.json and results/<setting>.svg beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tabulate import tabulate

from qtrain import environment, mean_difference, train, training_recipe

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "model": "resnet18", "seeds": 5, "changes": {"lr": 0.02}},
    "cifar10": {
        "data": "cifar10",
        "model": "resnet20",
        "seeds": 1,
        # papers' lr 0.1 at batch 128 and weight decay 1e-4; a cosine over the epochs at hand
        "changes": {"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "warmup": 0.5},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", help="data set name, where it differs from the setting's")
    parser.add_argument("--data-dir")
    parser.add_argument("--cache-dir")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    seeds = range(args.seeds or setting["seeds"])

    runs = []
    for seed in seeds:
        config = training_recipe(
            "int8-resnet18",
            model=setting["model"],
            data=args.data or setting["data"],
            data_dir=args.data_dir,
            cache_dir=args.cache_dir,
            epochs=args.epochs,
            seed=seed,
            threads=args.threads,
            runs_dir=args.runs_dir,
            name=f"{args.setting}-seed{seed}",
            resume=True,  # a killed experiment goes on where it was
            **setting["changes"],
        )
        runs.append(train(config))
        print(runs[-1].curves_table(), runs[-1].gap_line(), sep="\n", flush=True)

    labels = runs[0].labels
    finals = {key: [run.accuracy[key] for run in runs] for key in labels}
    seconds = {key: [run.seconds[key] for run in runs] for key in labels}
    rows = [
        [label, statistics.fmean(finals[key]), _spread(finals[key]), len(runs),
         statistics.fmean(seconds[key])]
        for key, label in labels.items()
    ]  # fmt: skip
    print(tabulate(rows, ["", "accuracy", "std", "n", "train s"], floatfmt=".4f"))
    if len(runs) > 1:
        gap = mean_difference(finals["baseline"], finals["quantized"])
    else:
        assert runs[0].gap is not None
        gap = runs[0].gap
    print(f"gap, int8 - full precision: {gap} (95 %, {gap.method}, n = {gap.n})")

    args.out.mkdir(exist_ok=True)
    result = {
        "config": runs[0].config.to_dict(),
        "recipe": str(runs[0].config.quantization()),
        "seeds": list(seeds),
        "accuracy": finals,
        "train_seconds": seconds,
        "gap": {"value": gap.value, "low": gap.low, "high": gap.high, "n": gap.n,
                "method": gap.method},
        "epochs": [run.epochs for run in runs],
        "environment": environment(torch.device("cpu" if runs[0].config.device == "cpu" else
                                                ("cuda" if torch.cuda.is_available() else "cpu"))),
    }  # fmt: skip
    for private in ("data_dir", "cache_dir", "runs_dir"):
        result["config"].pop(private, None)
    (args.out / f"{args.setting}.json").write_text(json.dumps(result, indent=1) + "\n")
    _plot(runs, args.out / f"{args.setting}.svg")


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def _plot(runs: list[Any], path: Path) -> None:
    """Test accuracy and training loss of every seed, one colour per model."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = {"baseline": "#0072B2", "quantized": "#D55E00"}
    for i, run in enumerate(runs):
        for key, label in run.labels.items():
            lines = [line for line in run.epochs if line["branch"] == key]
            x = [line["epoch"] for line in lines]
            style = {"color": colours[key], "linestyle": "-" if key == "baseline" else "--"}
            name = label if i == 0 else None
            axes[0].plot(x, [e["train_loss"] for e in lines], label=name, alpha=0.8, **style)
            axes[1].plot(x, [e["test_accuracy"] for e in lines], label=name, alpha=0.8, **style)
    for ax, title in zip(axes, ("training loss", "test accuracy"), strict=True):
        ax.set_xlabel("epoch")
        ax.set_ylabel(title)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
