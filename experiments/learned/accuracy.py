"""Learned steps against fixed ones: what learning a quantizer's scale is worth at 4 and 2 bits.

    python -m experiments.learned.accuracy --jobs 2 --seeds 8
    python -m experiments.learned.claims

A ResNet of three stages on 8 x 8 digits, trained from scratch by SGD with momentum; test accuracy
in percent.  Weights and inputs of the forward are quantized, gradients are not; the first and last
layers have 8 bits, and inputs behind ReLUs are unsigned, as in Esser et al. 2020.  Per width:

learned   `quantizers.LSQ`: the step begins at 2 mean|x| / sqrt(high) and is trained
frozen    the same beginning, kept: what learning adds
absmax    the step of the largest magnitude of each tensor, at every step

The claims, their margins set before the runs, are in claims.py.  Writes results/digits-here.json.
"""

from __future__ import annotations

from torch import nn

from experiments.harness import images, small
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve
from qtrain import Forward, Recipe, quantize, recipes
from quantizers import IntFormat, Quantizer

WIDTHS = (4, 2)
ARMS = {"fp32": "full precision"} | {
    f"{kind}-{bits}": f"{bits} bits, {text}"
    for bits in WIDTHS
    for kind, text in (
        ("learned", "learned steps"),
        ("frozen", "the steps LSQ begins with"),
        ("absmax", "steps of the largest magnitude"),
    )
}


def absmax(bits: int, *, signed_inputs: bool) -> Recipe:
    """Symmetric integers over each tensor's largest magnitude."""
    inputs = Quantizer(format=IntFormat(bits, signed=signed_inputs))
    return Recipe(
        name=f"absmax {bits}",
        forward=Forward(input=inputs, weight=Quantizer(format=IntFormat(bits))),
    )


def digits(job: Job) -> Curve:
    """One arm on digits."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    if job.arm != "fp32":
        kind, bits = job.arm.split("-")
        model = converted(model, kind, int(bits), job.seed)
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))


def converted(model: nn.Module, kind: str, bits: int, seed: int) -> nn.Module:
    """The model under an arm's recipe, its first and last layers at 8 bits."""
    made = absmax if kind == "absmax" else recipes.lsq
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = {names[0]: made(8, signed_inputs=True), names[-1]: made(8, signed_inputs=False)}
    model = quantize(model, recipe=made(bits, signed_inputs=False), overrides=ends, seed=seed)
    if kind == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".product." not in name)
    return model


EXPERIMENT = Experiment(
    name="digits", arms=ARMS, reference="fp32", metric="accuracy", paper={},
    published="not this task", settings={"here": small.resnet(rate=0.05, milestones=(5, 7))},
    run=digits,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    small.main({"digits": EXPERIMENT}, __doc__ or "", __file__, arguments)


if __name__ == "__main__":
    main()
