"""What does a channel that is much larger than the others cost?

    python -m experiments.microscope.outliers --data-dir DIR

DIR holds a text.  Two tables: of runs of `healthy.py` by the first set's seeds, in which the former
rule ("30 times the median channel") raised alarms, and of a ViT in which a constant is added to one
input channel of a linear layer and taken off behind it, which changes nothing in full precision.
Both figures of the rule, and what the cosine of the whole gradient with that of full precision
gains when the operand is not quantized, mean of `BATCHES` batches.  Writes results/outliers.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from experiments.microscope.blind_faults import cosines, gradients
from experiments.microscope.healthy import EVERY, OPTIMIZERS, RECIPES, RUNS, STEPS, recipe_of
from experiments.microscope.subjects import Batch, subject, train, usual_optimizer
from qtrain import Monitor, environment, plain_state_dict, quantize
from qtrain.diagnosis.parts import Part, switched_off
from qtrain.inspection.rows import MonitorRow

CHOSEN, FIRST_SEED, BATCHES = (26, 37, 39, 40, 47, 83, 85, 90), 500, 4
FORMER = 30  # from where on the former rule raised an alarm
LAYER, SIZES = "blocks.layers.1.linear1", (0, 3, 10, 30, 60, 100, 300)
OUT = Path(__file__).parent / "results" / "outliers.json"
HEADERS = ("run", "layer", "role", "largest / median", "taken", "cosine", "gained without")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    found["planted"] = [planted(size) for size in SIZES]
    found["alarmed"] = [row for i in CHOSEN for row in alarmed(i, args.data_dir)]
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    for name in ("planted", "alarmed"):
        print(f"{name}\n\n{tabulate(found[name], HEADERS, tablefmt='github', floatfmt='.2g')}\n")


def alarmed(i: int, data_dir: Path) -> list[list[Any]]:
    """A line of each tensor whose largest figure is past the former threshold."""
    (name, optimizer, rate), seed = RUNS[i], FIRST_SEED + i
    make, rates = OPTIMIZERS[optimizer]
    own = subject(name, seed, data_dir)
    full = deepcopy(own.network)
    batches = own.batches(seed, STEPS + BATCHES)
    model = quantize(own.network, seed=seed, **RECIPES[recipe_of(i)])
    with Monitor(model, EVERY, layers=None) as monitor:
        train(model, batches[:STEPS], make(model.parameters(), rates[rate]))
    label = f"{name}, {recipe_of(i)}, {optimizer}, {rates[rate]:g}"
    return [
        [label, *part, *figures, *gained(model, full, [part], batches[STEPS:])]
        for part, figures in worst(monitor.rows).items()
        if figures[0] > FORMER
    ]


def planted(size: float) -> list[Any]:
    """A line of one channel that is `size` higher throughout, int8."""
    own = subject("vit", 0, Path())
    full = deepcopy(own.network)
    batches = own.batches(0, 150 + BATCHES)
    model = quantize(own.network, bits=8, seed=0)
    train(model, batches[:150], usual_optimizer("vit", model))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        block = LAYER.rpartition(".")[0]
        parameters[f"{block}.norm2.bias"][3] += size
        parameters[f"{LAYER}.bias"] -= size * parameters[f"{LAYER}.weight"][:, 3]
    with Monitor(model, 1, layers=None) as monitor:
        train(model, batches[150:151], torch.optim.SGD(model.parameters(), lr=0.0))
    part = (LAYER, "input")
    figures = worst(monitor.rows)[part]
    return [f"vit, int8, {size:g}", *part, *figures, *gained(model, full, [part], batches[150:])]


def worst(rows: Sequence[MonitorRow]) -> dict[Part, tuple[float, float]]:
    """The largest of both figures of each operand, over its records."""
    found: dict[Part, tuple[float, float]] = {}
    for row in rows:
        if row.outlier is not None:
            one, other = found.get((row.layer, row.role), (0.0, 0.0))
            most = max(one, row.outlier), max(other, row.crowded or 0.0)
            found[row.layer, row.role] = most
    return found


def gained(
    model: nn.Module, full: nn.Module, parts: Sequence[Part], batches: Sequence[Batch]
) -> tuple[float, float]:
    """The cosine of the gradient with that of full precision, and what it gains without parts."""
    full.load_state_dict(plain_state_dict(model))
    exact = gradients(full, batches)
    whole = cosines(gradients(model, batches), exact)
    with switched_off(model, parts):
        return whole, cosines(gradients(model, batches), exact) - whole


if __name__ == "__main__":
    main()
