"""Weights of bf16 without master weights: what their rounding costs in accuracy.

    python -m experiments.updates.accuracy digits
    python -m experiments.updates.accuracy text --data-dir TEXT

Products run in full precision: all that differs between the arms is the weight after the step,
rounded to nearest, stochastically, and with Kahan's compensation in bf16 (Zamirai et al. 2020,
arXiv 2010.06192).

Set before the runs: n = 3 seeds; margins of 1.5 points and 0.03 nats, as in experiments/recipes.
"""

from __future__ import annotations

from experiments import small_tasks

ARMS = {
    "fp32": {"recipe": "fp32"},
    "nearest": {"recipe": "fp32", "update": "bf16"},
    "stochastic": {"recipe": "fp32", "update": "bf16-stochastic"},
    "kahan": {"recipe": "fp32", "update": "bf16-kahan"},
}
STUDIES = {
    "digits": small_tasks.digits(ARMS, seeds=3, margin=0.015),
    "text": small_tasks.text(ARMS, seeds=3, margin=0.03),
}

if __name__ == "__main__":
    small_tasks.main(STUDIES, __file__)
