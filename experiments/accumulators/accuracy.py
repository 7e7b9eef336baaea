"""Training with sums of few bits: what the accumulator's width costs in accuracy.

    python -m experiments.accumulators.accuracy digits
    python -m experiments.accumulators.accuracy text --data-dir TEXT

All three products are summed by the accumulator.  On digits int8, its gradients in int8 too, with
integers that saturate; on text fp8 (e4m3, gradients e5m2, scaled) term after term in a format of 8
exponent bits and 3 mantissa bits, rounded to nearest: nothing overflows, what is lost are mantissa
bits.  `error` has the error of single sums, experiments/recipes fp8 with exact ones.

Set before the runs: n = 3 seeds; margins of 1.5 points and 0.03 nats, as in experiments/recipes.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import small_tasks
from qtrain import GradWeight, Recipe, recipes
from quantizers import FloatFormat, accumulators


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
    return replace(plain, name=arm, accumulator=sums)


def _arms(*names: str) -> dict[str, Recipe | str]:
    return {"fp32": "fp32"} | {name: recipe(name) for name in names}


STUDIES = {
    "digits": small_tasks.digits(_arms("int8-18", "int8-16"), seeds=3, margin=0.015),
    "text": small_tasks.text(_arms("fp8-m3"), seeds=3, margin=0.03),
}

if __name__ == "__main__":
    small_tasks.main(STUDIES, __file__)
