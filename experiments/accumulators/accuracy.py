"""Training with sums of few bits: accuracy against the accumulator's width.

    python -m experiments.accumulators.accuracy --jobs 2
    python -m experiments.accumulators.accuracy --jobs 2 --data imagefolder --data-dir CIFAR10
    python -m experiments.accumulators.error

digits        a ResNet of three stages on 8 x 8 digits
imagefolder   a narrow one on the first 1,000 training images of CIFAR-10 (a JPEG copy); all 10,000
              test images

All three products are summed by the accumulator.  int8, its gradients in int8 too, with integers
that saturate; fp8 (e4m3, gradients e5m2, scaled) term after term in formats of 8 exponent bits,
rounded to nearest: nothing overflows, what is lost are mantissa bits.  Margin, set before the runs:
1.5 points on digits, as in experiments/recipes; none on so few images, whose runs show where
training fails.

Writes results/<data>-here.json and .svg; `error` draws both beside the error of single sums.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.harness import images, small
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from qtrain import GradWeight, Recipe, quantize, recipes
from quantizers import FloatFormat, accumulators

#: bits of an integer accumulator; mantissa bits of a floating-point one
INTEGERS, MANTISSAS = (20, 18, 16, 14, 12), (10, 7, 5, 4, 3)


def recipe(arm: str) -> Recipe:
    """Of an arm, "int8", "int8-16", "fp8", "fp8-m7", ..."""
    name, _, width = arm.partition("-")
    plain = recipes.get(name)
    if name == "int8":  # whose grad_weight takes a gradient in bf16
        gradient = plain.grad_input.grad_output
        plain = replace(plain, grad_weight=GradWeight(grad_output=gradient))
    if not width:
        return plain
    sums = (
        accumulators.integer(int(width), overflow="saturate")
        if name == "int8"
        else accumulators.sequential(FloatFormat(8, int(width.removeprefix("m"))))
    )
    return replace(plain, accumulator=sums)


ARMS = {
    "fp32": "full precision",
    "int8": "int8, exact sums",
    **{f"int8-{bits}": f"int8, sums of {bits} bits that saturate" for bits in INTEGERS},
    "fp8": "fp8, sums in fp32",
    **{f"fp8-m{bits}": f"fp8, sums of {1 + 8 + bits} bits, e8m{bits}" for bits in MANTISSAS},
}


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    model = quantize(model, recipe=recipe(job.arm), seed=job.seed)
    return images.fit(model, dataset, job, groups=lambda model: images.groups(job, model))


def _experiment(name: str, setting: Setting) -> Experiment:
    return Experiment(
        name=name, arms=ARMS, reference="fp32", paper={}, published="not this task",
        settings={"here": setting}, run=run,
    )  # fmt: skip


EXPERIMENTS = {
    "digits": _experiment("digits", small.resnet(rate=0.05, milestones=(5, 7))),
    "imagefolder": _experiment(
        "imagefolder",
        Setting(
            network="resnet8", width=4, epochs=8, every=8, batch=32, rate=0.05, decay=5e-4,
            milestones=(5, 7), images=1000,
        ),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    small.main(EXPERIMENTS, __doc__ or "", __file__, arguments)


if __name__ == "__main__":
    main()
