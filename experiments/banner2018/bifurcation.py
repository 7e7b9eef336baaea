"""Experiment 11: which parts of the recipe 8-bit training needs, one changed at a time.

    python -m experiments.banner2018.bifurcation --data-dir PATH [--scale paper]

whole       the paper's recipe, but for what makes it slow to simulate: weights are symmetric, and
            grad_weight takes the gradient in full precision, as the paper's code does; range
            batch-norm in full precision with the exact constant
narrow      no bifurcation: grad_weight takes the gradient in as few bits as grad_input does, drawn
            anew by stochastic rounding
nearest     that gradient and grad_input's are rounded to nearest
            (bifurcated, nearest: grad_input's alone)
constant    range batch-norm's constant as the paper or its code prints it, instead of the exact one
ends        the first and the last layer in full precision

A number of bits in an arm's name is that of the gradients; weights and inputs always have 8.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import plot_arms, table
from experiments.harness.runs import execute
from qtrain import GradInput, GradWeight, NormRecipe, Recipe, deviations, quantize, recipes
from quantizers import IntFormat, Quantizer, minmax, nearest_even, stochastic


def gradient(bits: int, *, nearest: bool = False) -> Quantizer:
    """Of a layer gradient: affine, its extremes the range."""
    rounding = nearest_even if nearest else stochastic()
    affine = IntFormat(bits, signed=False, symmetric=False)
    return Quantizer(format=affine, range=minmax, rounding=rounding)


def recipe(bits: int = 8, *, narrow: bool = False, nearest: bool = False) -> Recipe:
    """The arm's, as above; bits: of the gradients."""
    base = recipes.banner2018()
    own = gradient(bits, nearest=nearest)
    return replace(
        base,
        forward=replace(base.forward, weight=Quantizer(format=IntFormat(8))),
        grad_input=GradInput(grad_output=own),
        grad_weight=GradWeight(grad_output=own) if narrow else GradWeight(),
        norm=NormRecipe(deviation=deviations.range_()),
    )


def constant(name: deviations.Constant) -> Recipe:
    """Whole, with another constant of the range."""
    return replace(recipe(), norm=NormRecipe(deviation=deviations.range_(constant=name)))


RECIPES = {
    "whole": recipe(),
    "narrow": recipe(narrow=True),
    "nearest": recipe(nearest=True),
    "4 bits": recipe(4),
    "4 bits, narrow": recipe(4, narrow=True),
    "4 bits, nearest": recipe(4, nearest=True),
    "4 bits, narrow, nearest": recipe(4, narrow=True, nearest=True),
    "paper's constant": constant("paper"),
    "code's constant": constant("code"),
    "ends": recipe(),
}


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    ends = {"conv1": None, "fc": None} if job.arm == "ends" else None
    model = quantize(
        images.resnet(job, dataset), recipe=RECIPES[job.arm], overrides=ends, seed=job.seed
    )
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))


EXPERIMENT = Experiment(
    name="bifurcation",
    arms={
        "whole": "8 bits, range batch-norm",
        "narrow": "no bifurcation",
        "nearest": "gradients rounded to nearest",
        "4 bits": "layer gradients of 4 bits",
        "4 bits, narrow": "no bifurcation",
        "4 bits, nearest": "gradients rounded to nearest",
        "4 bits, narrow, nearest": "both",
        "paper's constant": "1 / sqrt(2 ln n)",
        "code's constant": "0.5402 / sqrt(2 ln n)",
        "ends": "first and last layer in full precision",
    },
    reference="whole",
    paper={},
    published="not recovered",
    settings={
        "here": Setting(
            network="resnet10", width=8, images=4000, epochs=10, milestones=(6, 8), every=5,
            batch=64, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet18", epochs=90, warmup=5, milestones=(30, 60, 80), batch=128, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    result = execute(EXPERIMENT, args)
    print(table(result))
    plot_arms(result, args.output / f"bifurcation-{args.scale}.svg")


if __name__ == "__main__":
    main()
