"""Learned steps against ranges of each tensor: what learning is worth at 4 and 2 bits.

    python -m experiments.learned.accuracy

Weights and inputs of every product of the forward are quantized, gradients are not.  Per width:

learned   LSQ+: a weight's step, an input's step and offset begin as Bhalgat et al. 2020 (arXiv
          2004.09576) have it, and are trained
fixed     the same integers over the range of each tensor, at every step

Set before the runs: n = 4 seeds; a margin of 1.5 points, which an arm without a difference stays
within with 80 % power (Holm, 4 arms) where a run deviates by 0.5 points or less.
"""

from __future__ import annotations

from experiments import small_tasks
from qtrain import Forward, Recipe
from quantizers import LSQ, IntFormat, LSQPlus, Quantizer, minmax


def recipe(kind: str, bits: int) -> Recipe:
    """Of an arm: "learned" or "fixed"."""
    weights, inputs = IntFormat(bits, symmetric=False), IntFormat(bits, signed=False)
    if kind == "learned":
        own = Forward(
            input=LSQPlus(format=inputs, scaled_by="sample"),
            weight=LSQ(format=weights, start="deviation"),
        )
    else:
        own = Forward(
            input=Quantizer(format=inputs, range=minmax),
            weight=Quantizer(format=IntFormat(bits)),
        )
    return Recipe(name=f"{kind} {bits}", forward=own)


ARMS = {"fp32": "fp32"} | {
    f"{kind} {bits}": recipe(kind, bits) for bits in (4, 2) for kind in ("learned", "fixed")
}
STUDIES = {"digits": small_tasks.digits(ARMS, seeds=4, margin=0.015)}

if __name__ == "__main__":
    small_tasks.main(STUDIES, __file__)
