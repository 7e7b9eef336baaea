"""What is claimed of bf16 weights against the results: the table in README.md.

Set before the runs: n = 8 seeds; "alike" within 1.5 points (digits) or 0.05 nats (text), about
twice the deviation of full precision between seeds, as in experiments/recipes; "below" needs an
interval on one side of 0.
"""

from __future__ import annotations

from pathlib import Path

from experiments.harness.claims import Claim, publish

_SOURCE = "Zamirai et al. 2020, arXiv 2010.06192, on other tasks"


def _alike(experiment: str, arm: str, within: float, unit: str) -> Claim:
    return Claim(
        experiment=experiment,
        text=f"{experiment}: bf16 weights, {arm}, train as fp32's do",
        paper=_SOURCE,
        arm=arm,
        other="fp32",
        says="alike",
        within=within,
        unit=unit,
        places=3,
    )


CLAIMS = (
    *(_alike("digits", arm, 1.5, "%") for arm in ("stochastic", "kahan")),
    Claim(
        experiment="digits",
        text="digits: nearest rounding falls behind fp32",
        paper=_SOURCE,
        arm="nearest",
        other="fp32",
        says="below",
        places=3,
    ),
    *(_alike("text", arm, 0.05, "nats") for arm in ("stochastic", "kahan")),
    Claim(
        experiment="text",
        text="text: fp32's loss is below that of nearest rounding",
        paper=_SOURCE,
        arm="fp32",
        other="nearest",
        says="below",
        unit="nats",
        places=3,
    ),
)


if __name__ == "__main__":
    publish(CLAIMS, Path(__file__).parent / "README.md", __doc__ or "")
