"""Named recipes of every family on two small tasks: what they cost in accuracy and hardware.

    python -m experiments.recipes.accuracy digits
    python -m experiments.recipes.accuracy text --data-dir TEXT

Set before the runs: n = 3 seeds; margins of 1.5 points, for deviations of a run up to 0.45 points
and Holm's correction over 8 arms, and of 0.03 nats, ten times what two pilot runs of each of three
recipes differed by.  Costs are those of one training step beside full
precision's (`qtrain.cost`): bytes moved, energy of the products.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from experiments import small_tasks
from qtrain import cost, quantize

ARMS = {
    name: name
    for name in ("fp32", "int8", "banner2018", "jetfire", "fp8", "mxfp8", "nvfp4", "hbfp4", "luq")
}
STUDIES = {
    "digits": small_tasks.digits(ARMS, seeds=3, margin=0.015),
    "text": small_tasks.text(ARMS, seeds=3, margin=0.03),
}


def costs(task: str, recipe: str) -> tuple[str, str]:
    """Bytes moved and energy of a step, in parts of full precision's."""
    torch.manual_seed(0)
    if task == "digits":
        model, batch = small_tasks.resnet8(10, 1), torch.randn(32, 1, 8, 8)
    else:
        model, batch = small_tasks.transformer(65, 64), torch.randint(65, (8, 64))
    report = cost(quantize(model, recipe=recipe).train(), batch)
    rows = report.rows, report.fp32
    moved, energy = (
        [sum(getattr(row, name) for row in part) for part in rows]
        for name in ("moved_bytes", "energy_pj")
    )
    return f"{moved[0] / moved[1]:.2f}", f"{energy[0] / energy[1]:.2f}"


COSTS = Path(__file__).parent / "results" / "costs.json"


def kept(task: str, recipe: str) -> list[str]:
    """The same, as they were found when the command last ran."""
    found: dict[str, dict[str, list[str]]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return found[task][recipe]


MORE = ("bytes moved / fp32's", "energy / fp32's"), kept

if __name__ == "__main__":
    every = {task: {arm: costs(task, arm) for arm in ARMS} for task in STUDIES}
    COSTS.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    small_tasks.main(STUDIES, __file__, more=MORE)
