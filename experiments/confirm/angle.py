"""The angle between a tensor and itself quantized, against the theory of Banner et al. 2018.

    python -m experiments.confirm.angle --data cifar10 --data-dir PATH --seeds 3

The theory is about N Gaussian elements and M bits, rounded to the nearest multiple of a step of
max|x| / 2^M:  cos >= 2^M / (2^M + sqrt(ln N / 6)), the paper's bound, and, where the error is
orthogonal to x, cos = 1 / sqrt(1 + ln N / (6 * 4^M)), its tight form.  Such steps need M bits and a
sign: int8 is M = 7.

gaussian    vectors of 10^2 to 10^6 Gaussian elements
weights     of the convolutions and the classifier of a network trained in full precision with
            range batch-norm
inputs      of those layers, on the first 64 training images, in training mode
gradients   the gradients of those layers' outputs on the same images (the paper's layer gradients)

Writes results/angle.json: of every seed, kind and M the means over the tensors (over the lengths of
the Gaussian ones) of cosine, bound and tight form.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtrain import TrainConfig, data, environment, train
from qtrain.data import Batches

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)


def bound(bits: int, count: int) -> float:
    """The cosine of `count` elements is at least this."""
    return float(2**bits / (2**bits + math.sqrt(math.log(count) / 6)))


def tight(bits: int, count: int) -> float:
    """What it is on average."""
    return 1 / math.sqrt(1 + math.log(count) / (6 * 4**bits))


def cosine(x: Tensor, bits: int) -> float:
    """Of a tensor and itself rounded as the theory has it."""
    x = x.detach().double().flatten()
    step = x.abs().max() / 2**bits
    return float(torch.cosine_similarity(x, (x / step).round() * step, dim=0))


def gaussians(seed: int) -> list[Tensor]:
    """Vectors in rows, so many of each length that all together hold 10^6 elements."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(LENGTHS[-1] // n, n, generator=generator) for n in LENGTHS]


def tensors(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
    """Kind -> the network's tensors, layer by layer, each in a row, on one batch."""
    found: dict[str, list[Tensor]] = {"weights": [], "inputs": [], "gradients": []}

    def forward(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found["weights"].append(module.get_parameter("weight").detach().reshape(1, -1))
        found["inputs"].append(inputs[0].detach().reshape(1, -1))
        output.register_hook(lambda grad: found["gradients"].append(grad.reshape(1, -1)))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(forward) for layer in layers]  # type: ignore[arg-type]
    model.train()
    functional.cross_entropy(model(images), labels).backward()
    for handle in handles:
        handle.remove()
    return found


def means(found: Sequence[Tensor]) -> dict[str, list[float]]:
    """Of each M, over tensors, and within each over its rows: cosine, bound, tight form."""
    cosines = [
        [statistics.fmean(cosine(row, bits) for row in rows) for rows in found] for bits in WIDTHS
    ]
    counts = [rows.shape[1] for rows in found]
    return {
        "cosine": [statistics.fmean(own) for own in cosines],
        "bound": [statistics.fmean(bound(bits, n) for n in counts) for bits in WIDTHS],
        "tight": [statistics.fmean(tight(bits, n) for n in counts) for bits in WIDTHS],
    }


def measured(config: TrainConfig) -> dict[str, dict[str, list[float]]]:
    """Kind -> the means of a seed, its network trained by `config`."""
    model = train(config).models["quantized"]
    split = data.load(config.data, data_dir=config.data_dir, cache_dir=config.cache_dir).train
    images, labels = next(iter(Batches(split, batch_size=64, seed=config.seed, augment=False)))
    device = next(model.parameters()).device
    kinds = tensors(model, images.to(device), labels.to(device))
    return {kind: means(own) for kind, own in {"gaussian": gaussians(config.seed), **kinds}.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--cache-dir")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", default="runs/confirm/angle")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        config = TrainConfig(
            recipe="fp32", norm="range", baseline=False, model=args.model, data=args.data,
            data_dir=args.data_dir, cache_dir=args.cache_dir, epochs=args.epochs, batch_size=128,
            lr=0.1, zero_init_residual=args.model.startswith("resnet"), seed=seed,
            runs_dir=args.runs_dir, name=f"seed{seed}", overwrite=True,
        )  # fmt: skip
        found.append({"seed": seed, "config": config.to_dict(), **measured(config)})
    where = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    content = {"bits beside the sign": WIDTHS, "runs": found, "environment": where}
    args.output.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    (args.output / "angle.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
