"""What a training step costs by a recipe, of one layer and of a network: CPU time against fp32's.

    python -m experiments.recipes.speed [--rounds 7]

Forward and backward on one thread, full precision and all recipes in turn, round after round; the
median of the rounds' ratios to full precision and its quartiles.  Targets: 6 (goal 4) for e4m3 in
blocks, 4 for FP4 in blocks, 1.5 for fp8 with a scale a tensor.  Writes results/speed.json.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn

from experiments.speed.timing import cpu_seconds, ratio, run
from qtrain import models, quantize

RECIPES = ("mxfp8", "nvfp4", "fp4-all-the-way", "fp8")
#: what is made, and one input of it
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear, 512 tokens, 512 x 512": (lambda: nn.Linear(512, 512), (512, 512)),
    "Conv2d, 64 channels, 32x32, batch 16": (
        lambda: nn.Conv2d(64, 64, 3, padding=1),
        (16, 64, 32, 32),
    ),
    "ResNet-18, 32x32, batch 16": (
        lambda: models.get("resnet18", num_classes=10, in_channels=3, image_size=32),
        (16, 3, 32, 32),
    ),
}
Times = dict[str, dict[str, list[float]]]


def step_of(name: str, recipe: str) -> Callable[[], None]:
    """Forward and backward of a subject in a recipe; the gradient of a mean of squares."""
    torch.manual_seed(0)
    make, size = SUBJECTS[name]
    model, x = quantize(make(), recipe=recipe), torch.randn(size).requires_grad_()

    def step() -> None:
        out: Tensor = model(x)
        out.square().mean().backward()

    return step


def measured(rounds: int) -> Times:
    """{subject: {recipe: the seconds of CPU time of each round}}."""
    steps = {(name, one): step_of(name, one) for name in SUBJECTS for one in ("fp32", *RECIPES)}
    found: Times = {name: {} for name in SUBJECTS}
    for (name, one), times in cpu_seconds(steps, rounds).items():
        found[name][one] = [round(taken, 5) for taken in times]
    return found


def table(found: Times) -> str:
    """Markdown: a row a recipe."""
    rows = [
        [f"`{one}`", *(ratio(own[one], own["fp32"]).text(digits=2) for own in found.values())]
        for one in RECIPES
    ]
    return tabulate(rows, ["recipe", *found], "github", disable_numparse=True)


def main(arguments: list[str] | None = None) -> None:
    run(__file__, __doc__ or "", "seconds", measured, table, arguments)


if __name__ == "__main__":
    main()
